"""Time of one training step by kernel: of beit2 from CubeCL's log, of PyTorch from its profiler.

    kernels.py --beit2 target/release/beit2 --python python3 --device cuda --stage pretrain --size base --batch-size 128 \\
        --precision bf16 --out results

Writes OUT/kernels-beit2.json and OUT/kernels-pytorch.json: kernels with calls and milliseconds, longest first. CubeCL
waits for each kernel, so that short ones look longer than they are; PyTorch's times are the GPU's own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from programs import Program, ProgramFailed

HERE = Path(__file__).resolve().parent
SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
TOP = 60


def milliseconds(text: str) -> float | None:
    """Of a duration such as 1.5ms."""
    found = re.fullmatch(r"([0-9.]+)(s|ms|µs|ns)", text.strip())
    return 1000 * float(found[1]) * SECONDS[found[2]] if found else None


def step_kernels(log: str) -> list[dict[str, Any]]:
    """Kernels up to the first table, which CubeCL writes when the program waits for the device; a line each is
    `| duration | name`."""
    rows: dict[str, dict[str, Any]] = {}
    for line in log.splitlines():
        duration, _, name = line.removeprefix("| ").partition("|")
        if duration.strip() == "Name" and rows:
            break
        if line.startswith("| ") and (ms := milliseconds(duration)) is not None:
            row = rows.setdefault(name.strip(), {"name": name.strip(), "calls": 0, "ms": 0.0})
            row["calls"] += 1
            row["ms"] += ms
    return sorted(rows.values(), key=lambda row: -row["ms"])


def ours(args: argparse.Namespace, config: str) -> dict[str, Any]:
    """The kernels of the first step after the warm-up: at its end the program waits for the device."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "kernels.log")
        logger = f'[profiling.logger]\nlevel = "basic"\nfile = {json.dumps(str(log))}\n'
        Path(folder, "cubecl.toml").write_text(config + "\n" + logger)
        command = [
            os.path.abspath(args.beit2), "bench", "train", "--stage", args.stage, "--size", args.size,
            "--batch-size", str(args.batch_size), "--precision", args.precision, "--device", args.device,
            "--steps", "1", "--rounds", "1", "--paced", "--json",
        ]  # fmt: skip
        # CubeCL looks for its settings in the working folder.
        program = Program("beit2", command, args.threads, args.timeout, cwd=folder)
        try:
            program.wait_ready()
            time.sleep(1)  # another thread writes the log
            warm = log.stat().st_size if log.exists() else 0
            program.round()
            time.sleep(1)
        finally:
            program.stop()
        text = log.read_bytes()[warm:].decode(errors="replace") if log.exists() else ""
    step = step_kernels(text)
    keys = ("program", "version", "stage", "size", "batch_size", "precision", "device")
    return {k: program.rounds[0][k] for k in keys} | {
        "total_ms": round(sum(row["ms"] for row in step), 3),
        "calls": sum(row["calls"] for row in step),
        "kernels": [row | {"ms": round(row["ms"], 4)} for row in step[:TOP]],
    }


def theirs(args: argparse.Namespace, file: Path) -> None:
    command = [
        args.python, str(HERE / "torch_beit2.py"), "train", "--stage", args.stage, "--size", args.size,
        "--batch-size", str(args.batch_size), "--precision", args.precision, "--device", args.device,
        "--threads", str(args.threads),
        "--steps", "1", "--rounds", "1", "--profile", str(file),
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"pytorch took longer than {args.timeout:.0f} s") from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()] or ["it left no message"]
        raise ProgramFailed(f"pytorch ended with status {error.returncode}: {said[-1]}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one training step by kernel.")
    parser.add_argument("--beit2", required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--stage", default="pretrain")
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--config", help="a cubecl.toml that beit2 is to use, for its caches")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for each program")
    parser.add_argument("--programs", nargs="+", default=["beit2", "pytorch-eager"], help="ours alone: beit2")
    parser.add_argument("--out", required=True, help="a folder")
    args = parser.parse_args()
    out = Path(args.out)
    failed = False
    config = Path(args.config).read_text() if args.config else ""
    measures = [lambda: (out / "kernels-beit2.json").write_text(json.dumps(ours(args, config), indent=1) + "\n")]
    if any(name.startswith("pytorch") for name in args.programs):
        measures.append(lambda: theirs(args, out / "kernels-pytorch.json"))
    for measure in measures:
        try:
            measure()
        except ProgramFailed as error:
            print(f"kernels.py: {error}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    # The program that is measured ends with this one: it would keep the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
