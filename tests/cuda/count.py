"""Runs a step of every stage on the emulated card, counts what it does, and compares with `limits.toml`.

    count.py --beit2 target/release/beit2 --out FOLDER [--only pretrain.bf16 …] [--write docs/benchmarks/gpu-stub.md]

`tests/cuda/run.sh` builds what this needs and calls it. Nothing computes here: the driver is a stub, and what a kernel would
write is whatever the memory holds. Standard library only.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import tomllib

import stublog

HERE = Path(__file__).resolve().parent
STAGES = ("pretrain", "finetune", "tokenizer", "infer", "segment")
PRECISIONS = ("bf16", "f32")
# Steps of the run that fills the caches, of a short and of a long one.
FILL, SHORT, LONG = 1, 3, 8


class Failed(Exception):
    """One sentence."""


@dataclass(frozen=True)
class Cell:
    """A stage in a precision."""

    stage: str
    precision: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.precision}"


# ------------------------------------------------------------------------------------------------------------ running


def png(path: Path, side: int, channels: int, value: int) -> None:
    """A square image of stripes."""
    kind = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + bytes((value + y // 8) % 3 for _ in range(side * channels)) for y in range(side))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def scenes(folder: Path, count: int, side: int = 512) -> Path:
    """Images with masks of 150 classes, to segment."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for at in range(count):
        png(folder / "images" / f"{at}.png", side, 3, 60 * at % 250)
        png(folder / "masks" / f"{at}.png", side, 1, at)
    (folder / "classes.txt").write_text("".join(f"class{n}\n" for n in range(150)))
    return folder


def command(cell: Cell, batch: int, steps: int, folder: Path) -> list[str]:
    """Arguments of the program for so many steps."""
    common = ["--batch-size", str(batch), "--precision", cell.precision, "--device", "cuda"]
    if cell.stage == "segment":
        # All steps of an epoch, at whose end metrics are read. Evaluation and checkpoint at the end are the same in a long and a
        # short run.
        data = scenes(folder.parent / "scenes", batch * (LONG + 1))
        val = scenes(folder.parent / "val", 4)
        return [
            "segment", "train", "segment_base_ade20k", "--init", "scratch", "--data", str(data), "--val", str(val),
            "--no-check", "--steps", str(steps), "--workers", "1", "--out", str(folder / "run"), "--restart",
            "--set", "eval.every=\"none\"", "--set", "schedule.warmup_steps=1", *common,
        ]  # fmt: skip
    kind = ["infer"] if cell.stage == "infer" else ["train", "--stage", cell.stage]
    return ["bench", *kind, "--size", "base", *common, "--steps", str(steps), "--rounds", "1"]


class Runner:
    """Starts the program with the stub in place of the driver."""

    def __init__(self, beit2: Path, out: Path):
        self.beit2, self.out = beit2, out
        # A sentence for each run in which the stub refused something.
        self.refused: list[str] = []

    def run(self, name: str, args: list[str], caches: Path, fake: bool, limit: float, **extra: str) -> Path:
        """Runs to the end → the folder with what the stub wrote. `fake`: NVRTC is recorded, not called.

        Raises Failed: it ended badly, or not in time.
        """
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "stub").mkdir(parents=True)
        environment = os.environ | {
            "XDG_CACHE_HOME": str(caches),
            "STUB_DIR": str(folder / "stub"),
            "STUB_LOG": "1",
            "STUB_CPU": "1",
            "STUB_FIRST_F32": "8",
        }
        if fake:
            environment |= {"STUB_FAKE": "1"}
        environment |= extra
        started = time.monotonic()
        with open(folder / "said.txt", "w") as said:
            try:
                done = subprocess.run(
                    [str(self.beit2), *args], cwd=folder, env=environment, stdout=said, stderr=said, timeout=limit
                )
                status = done.returncode
            except subprocess.TimeoutExpired:
                raise Failed(f"{name} took longer than {limit:.0f} s ({folder}/said.txt)") from None
        (folder / "seconds").write_text(f"{time.monotonic() - started:.2f}\n")
        shutil.rmtree(folder / "run", ignore_errors=True)  # checkpoints of gigabytes
        text = (folder / "said.txt").read_text(errors="replace")
        if status:
            last = next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
            raise Failed(f"{name} ended with status {status}: {last.strip()[:300]} ({folder}/said.txt)")
        if refused := [line for line in text.splitlines() if line.startswith("[stub]")]:
            self.refused.append(
                f"{name}: a device would refuse {len(refused)} calls, such as: {refused[0][7:].strip()[:200]}"
            )
        return folder


# ----------------------------------------------------------------------------------------------------------- checking


def over(cell: Cell, step: stublog.Step, limits: dict) -> list[str]:
    """A sentence for every limit that the step exceeds."""
    sentences = []
    for name in stublog.KINDS:
        if step.counts[name] > limits[name]:
            sentences.append(f"{cell}: {step.counts[name]:g} {name.replace('_', ' ')} a step, limit {limits[name]}")
    for name, value in (("thread_ms", step.thread_ms), ("process_ms", step.process_ms)):
        if name in limits and value is not None and value > limits[name]:
            sentences.append(f"{cell}: {value:.1f} ms of processor time a step ({name}), limit {limits[name]}")
    return sentences


def count(runner: Runner, cell: Cell, limits: dict, limit_s: float) -> stublog.Step:
    """Counts a warm step: a first run fills the caches, two others differ by their steps alone."""
    caches = runner.out / "caches"
    runs = []
    for steps in (FILL, SHORT, LONG):
        name = f"{cell}.{steps}"
        folder = runner.out / name
        runs.append(runner.run(name, command(cell, limits["batch"], steps, folder), caches, True, limit_s))
    short, long = (stublog.read(folder / "stub") for folder in runs[1:])
    return stublog.step(long, short, LONG - SHORT, warm=SHORT)


def first_step(lines: list[stublog.Line], name: str) -> stublog.Line | None:
    """The end of the first step: the first launch of a kernel that runs once a step."""
    return next((line for line in lines if line.kind == "launch" and line.kernel() == name), None)


def refused_kernels(runner: Runner, limits: dict, quick: bool) -> list[str]:
    """Compiles by the real NVRTC and assembles by ptxas: own kernels for all generations, and every source that the counted
    runs left, for an H100 → a sentence for what fails."""
    checks = [["--spill", str(limits["spill_bytes"]), *(["--arch", "sm_90a"] if quick else [])]]
    if not quick:
        sources = runner.out / "sources"
        shutil.rmtree(sources, ignore_errors=True)
        sources.mkdir()
        for file in sorted(runner.out.glob(f"*.{FILL}/stub/src/*.cu")):
            name = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            shutil.copyfile(file, sources / f"{name}.cu")
        checks.append([str(sources), "--arch", "sm_90a"])
    failed = []
    for check in checks:
        done = subprocess.run([sys.executable, str(HERE / "kernels.py"), *check], capture_output=True, text=True)
        name = "kernels-of-runs.txt" if len(checks) > 1 and check is checks[-1] else "kernels.txt"
        (runner.out / name).write_text(done.stdout + done.stderr)
        if done.returncode:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["it left no message"]
            failed.append(f"kernels: {said[-1].strip()[:300]} ({runner.out / name})")
    return failed


def startup(runner: Runner, limits: dict, limit_s: float) -> dict[str, float]:
    """Processor seconds from the start of base pretraining in bf16 to the end of its first step, by the real NVRTC, with
    nothing kept and with everything kept."""
    cell, caches, result = Cell("pretrain", "bf16"), runner.out / "caches-startup", {}
    long, short = (runner.out / f"{cell}.{steps}" / "stub" for steps in (LONG, SHORT))
    mark = stublog.marker(stublog.read(long), stublog.read(short), LONG - SHORT)
    if mark is None:
        raise Failed("no kernel runs once a step, so the first step has no end that the log shows")
    shutil.rmtree(caches, ignore_errors=True)
    for name in ("cold", "warm"):
        folder = runner.out / f"startup.{name}"
        folder = runner.run(f"startup.{name}", command(cell, limits["batch"], 1, folder), caches, False, limit_s)
        line = first_step(stublog.read(folder / "stub"), mark)
        if line is None:
            raise Failed(f"the {name} start never came to the end of its first step")
        result[f"{name}_s"] = line.process_cpu if line.process_cpu is not None else line.seconds
        result[f"{name}_wall_s"] = line.seconds
        compiled = folder / "stub" / "compile.tsv"
        result[f"{name}_compiled"] = len(compiled.read_text().splitlines()) if compiled.exists() else 0
    return result


# ------------------------------------------------------------------------------------------------------------- report


def machine() -> str:
    """The processor that was counted on."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} cores"


def digits(value: float | None, form: str = "g") -> str:
    """A number for a table."""
    return "—" if value is None else format(round(value, 1), form)


HEAD = "| | launches | copies in | MB in | copies out | waits | allocations | GPU memory, GB | host ms: busiest thread | all threads |"


def row(name: str, step: dict) -> str:
    """A line of the table."""
    c = step["counts"]
    cells = [c["launches"], c["copies_in"], step["bytes_in"] / 1e6, c["copies_out"], c["waits"], c["allocations"], step["peak_bytes"] / 1e9]
    cells += [step["thread_ms"], step["process_ms"]]
    return f"| {name} | " + " | ".join(digits(value) for value in cells) + " |"


def table(results: dict) -> str:
    """All cells."""
    rule = re.sub(r"[^|]+", "---:", HEAD).replace("---:", "---", 1)
    lines = [HEAD, rule] + [row(name, step) for name, step in results["cells"].items()]
    return "\n".join(lines)


def as_dict(step: stublog.Step) -> dict:
    """For JSON; the kernels that run most often."""
    most = sorted(step.kernels.items(), key=lambda item: -item[1])
    return {
        "counts": step.counts, "bytes_in": step.bytes_in, "thread_ms": step.thread_ms, "process_ms": step.process_ms,
        "peak_bytes": step.peak_bytes, "pageable_bytes": step.pageable_bytes, "gemms": step.gemms, "gemm_flop": step.gemm_flop,
        "kernels": dict(most), "copies": step.copies,
    }  # fmt: skip


def write_page(page: Path, results: dict) -> None:
    """Puts the tables between the marks of the page."""
    text = page.read_text()
    start, end = "<!-- counts -->\n", "<!-- end -->"
    before, _, rest = text.partition(start)
    if not rest or end not in rest:
        raise Failed(f"{page} has no lines '<!-- counts -->' and '<!-- end -->' to write between")
    body = f"Counted {results['date']} on {results['machine']}, commit `{results['commit']}`.\n\n{table(results)}\n"
    if results.get("startup"):
        s = results["startup"]
        body += (
            "\nStart of base pretraining in bf16 to the end of its first step:"
            f" {s['cold_s']:.1f} s of processor time with nothing kept ({s['cold_compiled']} calls of NVRTC),"
            f" {s['warm_s']:.1f} s with everything kept ({s['warm_compiled']} calls).\n"
        )
    page.write_text(before + start + body + end + rest.partition(end)[2])


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts what steps do on the emulated card.")
    parser.add_argument("--beit2", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for logs; the counts go to OUT/counts.json")
    parser.add_argument("--only", nargs="*", default=[], help="cells such as pretrain.bf16")
    parser.add_argument("--limits", type=Path, default=HERE / "limits.toml")
    parser.add_argument("--seconds", type=float, default=300, help="that one run may take")
    parser.add_argument("--quick", action="store_true", help="pretraining and inference in bf16, own kernels for an H100, no start")
    parser.add_argument("--no-startup", action="store_true", help="leave out the two starts with the real NVRTC")
    parser.add_argument("--no-kernels", action="store_true", help="compile no kernel by the real NVRTC")
    parser.add_argument("--write", type=Path, help="a page whose table is replaced")
    args = parser.parse_args()
    limits = tomllib.loads(args.limits.read_text())
    cells = [Cell(stage, precision) for stage in STAGES for precision in PRECISIONS]
    if unknown := set(args.only) - set(map(str, cells)):
        parser.error(f"{sorted(unknown)[0]} is no cell; they are {', '.join(map(str, cells))}")
    if args.quick:
        args.only, args.no_startup = args.only or ["pretrain.bf16", "infer.bf16"], True
    runner = Runner(args.beit2.resolve(), args.out.resolve())
    runner.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    results: dict = {
        "date": datetime.date.today().isoformat(), "machine": machine(), "commit": commit.stdout.strip(),
        "program": hashlib.sha256(args.beit2.read_bytes()).hexdigest()[:12], "cells": {},
    }  # fmt: skip
    failed: list[str] = []
    print(HEAD, flush=True)
    for cell in cells:
        if args.only and str(cell) not in args.only:
            continue
        of_cell = limits[cell.stage][cell.precision]
        try:
            step = count(runner, cell, of_cell, args.seconds)
        except Failed as error:
            failed.append(str(error))
            print(f"| {cell} | failed: {error}", flush=True)
            continue
        results["cells"][str(cell)] = as_dict(step)
        print(row(str(cell), results["cells"][str(cell)]), flush=True)
        failed += over(cell, step, of_cell)
        (runner.out / "counts.json").write_text(json.dumps(results, indent=1) + "\n")
    if not args.no_startup and "pretrain.bf16" in results["cells"]:
        try:
            results["startup"] = startup(runner, limits["pretrain"]["bf16"], args.seconds * 4)
            for name in ("cold_s", "warm_s"):
                value, limit = results["startup"][name], limits["startup"][name]
                if value > limit:
                    failed.append(f"the {name[:-2]} start takes {value:.1f} s of processor time, limit {limit} s")
            print("start:", json.dumps(results["startup"]))
        except Failed as error:
            failed.append(str(error))
    if not args.no_kernels:
        failed += refused_kernels(runner, limits["kernels"], args.quick)
    (runner.out / "counts.json").write_text(json.dumps(results, indent=1) + "\n")
    failed += runner.refused
    if args.write:
        write_page(args.write, results)
    for sentence in failed:
        print(f"tests/cuda: {sentence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
