"""Compares `beit2 bench` with PyTorch, eager and compiled, on the same machine at the same time of day.

    compare.py run --beit2 target/release/beit2 --python target/compare-venv/bin/python --out cpu.jsonl
    compare.py run … --only train:pretrain:small:8:f32 --only infer:base:1:f32
    compare.py table cpu.jsonl

A cell is one step at one size, batch and precision. For each cell the three programs start one after the other, build
their models, warm up, and then take turns: one round (a few steps) each, in alternating order, while the other two
sleep. So all of them see the same machine, and a disturbance shows in the spread of the ratios of a round instead of
in one program's figure. Standard library only; the command that does everything is cpu.sh.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS, EAGER, COMPILED = "beit2", "pytorch-eager", "pytorch-compile"
# More of the machine than this at work for others during a round: a warning, and the cell should be measured again.
MUCH_LOAD = 0.05


def fail(sentence: str) -> None:
    print(f"compare.py: {sentence}", file=sys.stderr)
    sys.exit(1)


class ProgramFailed(Exception):
    """A program that ended or fell silent; its text is one sentence."""


# ----------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cell:
    kind: str  # train or infer
    stage: str | None  # of train
    size: str
    batch: int
    dtype: str

    @staticmethod
    def parse(text: str) -> Cell:
        """`train:STAGE:SIZE:BATCH:DTYPE` or `infer:SIZE:BATCH:DTYPE`."""
        parts = text.split(":")
        if parts[0] == "train" and len(parts) == 5:
            kind, stage, size, batch, dtype = parts
        elif parts[0] == "infer" and len(parts) == 4:
            (kind, size, batch, dtype), stage = parts, None
        else:
            fail(f"'{text}' is no cell; one is train:pretrain:small:8:f32 or infer:base:1:bf16")
        if not batch.isdigit() or int(batch) < 1:
            fail(f"'{batch}' in '{text}' is no batch size")
        return Cell(kind, stage, size, int(batch), dtype)

    def __str__(self) -> str:
        stage = [self.stage] if self.stage else []
        return ":".join([self.kind, *stage, self.size, str(self.batch), self.dtype])

    def flags(self) -> list[str]:
        stage = ["--stage", self.stage] if self.stage else []
        return [self.kind, *stage, "--size", self.size, "--batch", str(self.batch), "--dtype", self.dtype]

    def steps(self) -> int:
        """Steps in a round, so that a round of the slowest program lasts about 2 to 10 seconds on two cores."""
        if self.kind == "infer":
            return {"tiny": 20, "small": 10, "base": 5, "large": 3}.get(self.size, 3)
        return {"tiny": 4, "small": 2}.get(self.size, 1)


def default_cells() -> list[Cell]:
    """Base trains with 4 pictures so that its three resident programs fit 16 GiB and a cell takes minutes."""
    dtypes = ("f32", "bf16")
    train = [
        Cell("train", stage, size, 4 if size == "base" else 8, dtype)
        for stage in ("tokenizer", "pretrain", "finetune")
        for size in ("tiny", "small", "base")
        for dtype in dtypes
    ]
    infer = [Cell("infer", None, size, batch, d) for size in ("small", "base") for batch in (1, 8) for d in dtypes]
    return train + infer


# -------------------------------------------------------------------------------------------------------- programs


def cpu_ticks() -> int:
    """Ticks that all processors have worked since the start, for anyone, a hypervisor's theft included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return user + nice + system + irq + softirq + steal


def process_ticks(pid: int) -> int:
    """Ticks that all threads of a process have worked."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until_quiet(patience: float) -> None:
    """Returns after a second in which the machine was idle, or after `patience` seconds; at once where that is 0."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = cpu_ticks()
        time.sleep(1)
        if (cpu_ticks() - before) / os.sysconf("SC_CLK_TCK") / os.cpu_count() < MUCH_LOAD:
            return


class Program:
    """A program that measures one round for each line it is sent."""

    def __init__(self, name: str, command: list[str], threads: int, patience: float):
        self.name, self.patience = name, patience
        count = str(threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "RAYON_NUM_THREADS": count,
        }
        self.errors = tempfile.TemporaryFile("w+")
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
            )
        except OSError as error:
            raise ProgramFailed(f"{name} cannot be started: {command[0]}: {error.strerror}") from None
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.facts: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the end

    def _answer(self) -> dict[str, Any]:
        """The next JSON line."""
        try:
            line = self.lines.get(timeout=self.patience)
        except queue.Empty:
            raise ProgramFailed(f"{self.name} has said nothing for {self.patience:.0f} s") from None
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = [text.strip() for text in self.errors if text.strip()] or ["it left no message"]
            raise ProgramFailed(f"{self.name} ended with status {self.process.returncode}: {said[-1]}")
        try:
            return json.loads(line)
        except ValueError:
            raise ProgramFailed(f"{self.name} printed no JSON: {line.strip()[:200]}") from None

    def wait_ready(self) -> None:
        self.facts = self._answer()
        if self.facts.pop("ready", None) is not True:
            raise ProgramFailed(f"{self.name} did not begin with a ready line")

    def round(self) -> None:
        everyone, own = cpu_ticks(), process_ticks(self.process.pid)
        started = time.monotonic()
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer says why
        measured = self._answer()
        elapsed = time.monotonic() - started
        own = process_ticks(self.process.pid) - own
        others = max(0, cpu_ticks() - everyone - own) / os.sysconf("SC_CLK_TCK")
        measured["other_load"] = round(others / elapsed / os.cpu_count(), 3)
        self.rounds.append(measured)

    def stop(self) -> None:
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.errors.close()


def commands(args: argparse.Namespace, cell: Cell) -> dict[str, list[str]]:
    counts = ["--steps", str(args.steps or cell.steps()), "--rounds", str(args.rounds), "--paced", "--json"]
    torch = [args.python, str(HERE / "torch_beit2.py"), *cell.flags(), "--threads", str(args.threads), *counts]
    every = {
        OURS: [args.beit2, "bench", *cell.flags(), *counts],
        EAGER: [*torch, "--mode", "eager"],
        COMPILED: [*torch, "--mode", "compile"],
    }
    return {name: every[name] for name in args.programs}


def measure(args: argparse.Namespace, cell: Cell) -> dict[str, Any]:
    """All rounds of a cell. A program that fails is left out, with its sentence; the others go on."""
    programs: list[Program] = []
    failed: dict[str, str] = {}
    started: list[Program] = []
    try:
        for name, command in commands(args, cell).items():
            try:
                program = Program(name, command, args.threads, args.patience)
                started.append(program)
                program.wait_ready()
                programs.append(program)
            except ProgramFailed as error:
                failed[name] = str(error)
                print(f"compare.py: {cell}: {error}", file=sys.stderr)
        for number in range(args.rounds):
            wait_until_quiet(args.wait_quiet)
            for program in list(programs if number % 2 == 0 else reversed(programs)):
                try:
                    program.round()
                except ProgramFailed as error:
                    programs.remove(program)
                    failed[program.name] = str(error)
                    print(f"compare.py: {cell}: {error}", file=sys.stderr)
                    continue
                load = program.rounds[-1]["other_load"]
                if load > MUCH_LOAD:
                    print(
                        f"compare.py: {cell}: others used {load:.0%} of the machine in round {number + 1} of "
                        f"{program.name}",
                        file=sys.stderr,
                    )
    finally:
        for program in started:
            program.stop()
    return {
        "cell": str(cell),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "system": f"{platform.system()} {platform.release()}",
        "programs": {p.name: {**p.facts, "rounds": p.rounds} for p in programs},
        "failed": failed,
    }


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


# --------------------------------------------------------------------------------------------------------- summary


def speeds(result: dict[str, Any], name: str) -> list[float]:
    return [r["images_per_second"] for r in result["programs"].get(name, {}).get("rounds", [])]


def ratios(result: dict[str, Any], other: str) -> list[float]:
    """Ours over another's speed, round by round."""
    return [a / b for a, b in zip(speeds(result, OURS), speeds(result, other))]


def better(result: dict[str, Any]) -> str | None:
    """The faster of PyTorch's two ways."""
    there = [name for name in (EAGER, COMPILED) if speeds(result, name)]
    return max(there, key=lambda name: statistics.median(speeds(result, name)), default=None)


def peak(result: dict[str, Any], name: str, key: str) -> float | None:
    values = [r.get(key) for r in result["programs"].get(name, {}).get("rounds", [])]
    return max((v for v in values if v is not None), default=None)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "–"


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


HEADER = [
    "cell", "beit2 img/s", "eager", "compiled", "beit2 / eager", "beit2 / faster of the two",
    "step MiB: beit2", "eager", "compiled", "memory: beit2 / smaller", "other load",
]  # fmt: skip


def row(result: dict[str, Any]) -> list[str]:
    names = (OURS, EAGER, COMPILED)
    medians = [statistics.median(s) if (s := speeds(result, name)) else None for name in names]
    best = better(result)
    memory = [peak(result, name, "peak_step_memory_mib") for name in names]
    least = min((m for m in memory[1:] if m), default=None)
    loads = [r["other_load"] for p in result["programs"].values() for r in p["rounds"]]
    return [
        result["cell"],
        *(number(m, 2) for m in medians),
        spread(ratios(result, EAGER)),
        spread(ratios(result, best)) if best else "–",
        *(number(m) for m in memory),
        number(memory[0] / least, 2) if memory[0] and least else "–",
        f"{max(loads, default=0):.0%}",
    ]


def markdown(results: list[dict[str, Any]]) -> str:
    lines = [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1), *(row(r) for r in results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(result: dict[str, Any]) -> str:
    versions = [f"{name} {p['version'].split()[-1]}" for name, p in result["programs"].items() if p.get("version")]
    return f"{result['cpu']}, {result['cores']} cores, {result['threads']} threads; {', '.join(versions)}"


def table(files: list[str]) -> None:
    """One Markdown table for each machine in the files; of a cell measured twice the last counts."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for file in files:
        try:
            lines = Path(file).read_text().splitlines()
            results = [json.loads(line) for line in lines if line.strip()]
        except (OSError, ValueError) as error:
            fail(f"{file} cannot be read: {error}")
        for result in results:
            groups.setdefault(f"{result['cpu']}, {result['threads']} threads", {})[result["cell"]] = result
    for cells in groups.values():
        last = list(cells.values())
        print(f"{machine(last[-1])}; {last[0]['date'][:10]}\n\n{markdown(last)}\n")


# ------------------------------------------------------------------------------------------------------------ main


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares beit2 bench with PyTorch, round by round.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure cells")
    run.add_argument("--beit2", default=str(HERE.parents[1] / "target/release/beit2"), help="the program to compare")
    run.add_argument("--python", default=sys.executable, help="a Python with PyTorch and timm")
    run.add_argument("--out", help="append one JSON line for each cell")
    run.add_argument("--only", action="append", metavar="CELL", help="such as train:pretrain:small:8:f32; repeatable")
    run.add_argument("--rounds", type=int, default=5)
    run.add_argument("--steps", type=int, default=0, help="steps in a round; 0: by the size")
    run.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every program")
    run.add_argument("--programs", nargs="+", default=[OURS, EAGER, COMPILED], choices=[OURS, EAGER, COMPILED])
    run.add_argument("--patience", type=float, default=1200, help="seconds without an answer after which one is ended")
    run.add_argument("--wait-quiet", type=float, default=0, metavar="SECONDS", help="for an idle machine, each round")
    run.add_argument("--list", action="store_true", help="print the cells and stop")
    show = commands.add_parser("table", help="print files of --out as Markdown")
    show.add_argument("files", nargs="+", metavar="FILE")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.command == "table":
        return table(args.files)
    cells = [Cell.parse(text) for text in args.only] if args.only else default_cells()
    if args.list:
        return print("\n".join(map(str, cells)))
    if OURS in args.programs and not Path(args.beit2).is_file():
        fail(f"{args.beit2} is missing: build it with cargo build --release, or name it with --beit2")
    results = []
    for at, cell in enumerate(cells, 1):
        result = measure(args, cell)
        results.append(result)
        if args.out:
            with open(args.out, "a") as out:
                out.write(json.dumps(result) + "\n")
        print(f"[{at}/{len(cells)}] " + "  ".join(f"{k}: {v}" for k, v in zip(HEADER, row(result))), flush=True)
    print("\n" + machine(results[-1]) + "\n\n" + markdown(results))
    if any(result["failed"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
