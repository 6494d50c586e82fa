"""Compares `beit2 bench` with PyTorch, eager and compiled, on the same machine at the same time of day.

    compare.py run --beit2 target/release/beit2 --python target/python-env/bin/python --out cpu.jsonl
    compare.py run … --only train:pretrain:small:8:f32 --only infer:base:1:f32
    compare.py run … --simd avx2 --only infer:base:1:f32
    compare.py run … --device cuda --budget 400 --only train:pretrain:base:128:bf16
    compare.py table cpu.jsonl

A cell is one step at one size, batch and precision. On a CPU the three programs of a cell start one after the other,
build their models, warm up, and then take turns: one round (a few steps) each, in alternating order, while the other
two sleep. So all of them see the same machine, and a disturbance shows in the spread of the ratios of a round instead
of in one program's figure. On a GPU each program has the card to itself and does all of its rounds (`--turns program`):
three of them would not fit its memory, and nobody else uses it.

With --budget, a program that would probably not be done in time is not started, and the result says so. Where programs
have the machine to themselves, the line of a cell is written again after each, so that nothing is lost when the driver
is stopped. Standard library only; the commands that do everything are cpu.sh and ../gpu.sh.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tables
from programs import MUCH_LOAD, Program, ProgramFailed, cpu_name, gpu_name, wait_until_quiet
from tables import COMPILED, EAGER, OURS

HERE = Path(__file__).resolve().parent


def fail(sentence: str) -> None:
    print(f"compare.py: {sentence}", file=sys.stderr)
    sys.exit(1)


def warn(sentence: str) -> None:
    print(f"compare.py: {sentence}", file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cell:
    kind: str  # train or infer
    stage: str | None  # of train
    size: str
    batch: int
    precision: str

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
        return ":".join([self.kind, *stage, self.size, str(self.batch), self.precision])

    def flags(self) -> list[str]:
        stage = ["--stage", self.stage] if self.stage else []
        return [self.kind, *stage, "--size", self.size, "--batch-size", str(self.batch), "--precision", self.precision]

    def steps(self, device: str) -> int:
        """Steps in a round, so that a round of the slowest program lasts about 2 to 10 seconds on two cores, and a
        second or two on a GPU."""
        if device == "cuda":
            return 10 if self.kind == "train" else 20
        if self.kind == "infer":
            return {"tiny": 20, "small": 10, "base": 5, "large": 3}.get(self.size, 3)
        return {"tiny": 4, "small": 2}.get(self.size, 1)


def default_cells(device: str) -> list[Cell]:
    """On a CPU base trains with 4 images so that its three resident programs fit 16 GiB and a cell takes minutes. On
    a GPU the cells that matter most come first, because a budget cuts the end off."""
    if device == "cuda":
        return gpu_cells("base", (128, 64, 256), "bf16")
    dtypes = ("f32", "bf16")
    train = [
        Cell("train", stage, size, 4 if size == "base" else 8, dtype)
        for stage in ("tokenizer", "pretrain", "finetune")
        for size in ("tiny", "small", "base")
        for dtype in dtypes
    ]
    infer = [Cell("infer", None, size, batch, d) for size in ("small", "base") for batch in (1, 8) for d in dtypes]
    return train + infer


def gpu_cells(size: str, batches: tuple[int, ...], dtype: str) -> list[Cell]:
    """All steps at the first batch, then all at the next."""
    kinds = (("train", "pretrain"), ("train", "finetune"), ("train", "tokenizer"), ("infer", None))
    return [Cell(kind, stage, size, batch, dtype) for batch in batches for kind, stage in kinds]


# ---------------------------------------------------------------------------------------------------------- budget


class Budget:
    """Seconds for everything: a program that would probably outlast them is not started."""

    # Before anything is known: start, compilation or tuning of kernels, rounds.
    FIRST_GUESS: ClassVar = {OURS: 30.0, EAGER: 25.0, COMPILED: 80.0}

    def __init__(self, seconds: float | None):
        self.end = None if seconds is None else time.monotonic() + seconds
        self.took: dict[tuple[str, str | None], float] = {}

    def left(self) -> float:
        return float("inf") if self.end is None else self.end - time.monotonic()

    def refuses(self, name: str, cell: Cell) -> str | None:
        """Why the program is not started: a sentence, or `None` where it may be."""
        if self.end is None:
            return None
        others = [seconds for (other, _), seconds in self.took.items() if other == name]
        guess = self.took.get((name, cell.stage), min(others, default=self.FIRST_GUESS[name]))
        if guess <= self.left():
            return None
        return f"{name} was not started: about {guess:.0f} s, {max(0, self.left()):.0f} s are left of the budget"

    def learn(self, name: str, cell: Cell, seconds: float) -> None:
        self.took[name, cell.stage] = max(seconds, self.took.get((name, cell.stage), 0.0))


# ------------------------------------------------------------------------------------------------------ measurement


def commands(args: argparse.Namespace, cell: Cell) -> dict[str, list[str]]:
    counts = ["--steps", str(args.steps or cell.steps(args.device)), "--rounds", str(args.rounds), "--paced", "--json"]
    torch = [args.python, str(HERE / "torch_beit2.py"), *cell.flags(), "--threads", str(args.threads), *counts]
    torch += ["--device", args.device, *(["--gemm"] if args.turns == "program" else [])]
    every = {
        OURS: [args.beit2, "bench", *cell.flags(), "--device", args.device, *counts],
        EAGER: [*torch, "--mode", "eager"],
        COMPILED: [*torch, "--mode", "compile"],
    }
    return {name: every[name] for name in args.programs}


# What keeps every program at an instruction set: beit2; PyTorch's own kernels, which Inductor follows, and the compiler
# that Inductor calls; the matmuls of oneDNN and MKL.
SIMD = {
    "avx2": {
        "BEIT2_SIMD": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


def empty_result(args: argparse.Namespace, cell: Cell) -> dict[str, Any]:
    return {
        "cell": str(cell),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": args.device,
        "simd": args.simd,
        "gpu": gpu_name() if args.device == "cuda" else None,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "system": f"{platform.system()} {platform.release()}",
        "programs": {},
        "failed": {},
        "skipped": {},
    }


def one_round(program: Program, cell: Cell, number: int) -> None:
    program.round()
    load = program.rounds[-1]["other_load"]
    if load > MUCH_LOAD and program.device == "cpu":
        warn(f"{cell}: others used {load:.0%} of the machine in round {number} of {program.name}")


def measure_in_rounds(args: argparse.Namespace, cell: Cell) -> dict[str, Any]:
    """All programs resident, a round of each in turn. One that fails is left out with its sentence."""
    result = empty_result(args, cell)
    programs: list[Program] = []
    started: list[Program] = []

    def failed(name: str, error: ProgramFailed) -> None:
        result["failed"][name] = str(error)
        warn(f"{cell}: {error}")

    try:
        for name, command in commands(args, cell).items():
            try:
                limits = SIMD.get(args.simd, {})
                program = Program(name, command, args.threads, args.patience, args.device, environment=limits)
                started.append(program)
                program.wait_ready()
                programs.append(program)
            except ProgramFailed as error:
                failed(name, error)
        for number in range(args.rounds):
            wait_until_quiet(args.wait_quiet)
            for program in list(programs if number % 2 == 0 else reversed(programs)):
                try:
                    one_round(program, cell, number + 1)
                except ProgramFailed as error:
                    programs.remove(program)
                    failed(program.name, error)
    finally:
        for program in started:
            program.stop()
    result["programs"] = {p.name: {**p.facts, "rounds": p.rounds} for p in programs}
    return result


def measure_alone(
    args: argparse.Namespace, cell: Cell, budget: Budget, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """One program after the other, each with all of its rounds. `save` gets the result after each."""
    result = empty_result(args, cell)
    for name, command in commands(args, cell).items():
        if reason := budget.refuses(name, cell):
            result["skipped"][name] = reason
            warn(f"{cell}: {reason}")
            continue
        begun = time.monotonic()
        program = None
        try:
            program = Program(name, command, args.threads, min(args.patience, budget.left()), args.device)
            program.wait_ready()
            for number in range(args.rounds):
                program.patience = min(args.patience, budget.left())
                one_round(program, cell, number + 1)
        except ProgramFailed as error:
            result["failed"][name] = str(error)
            warn(f"{cell}: {error}")
        finally:
            if program is not None:
                program.stop()
        # The rounds before a failure count.
        if program is not None and program.rounds:
            result["programs"][name] = {**program.facts, "rounds": program.rounds}
        budget.learn(name, cell, time.monotonic() - begun)
        save(result)
    return result


# ------------------------------------------------------------------------------------------------------------ main


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares beit2 bench with PyTorch, round by round.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure cells")
    run.add_argument("--beit2", default=str(HERE.parents[1] / "target/release/beit2"), help="the program to compare")
    run.add_argument("--python", default=sys.executable, help="a Python with PyTorch and timm")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--simd", choices=SIMD, help="cpu: instruction set that no program goes beyond")
    run.add_argument("--out", help="append JSON lines; of a cell's lines the last counts")
    run.add_argument("--only", action="append", metavar="CELL", help="such as train:pretrain:small:8:f32; repeatable")
    run.add_argument("--rounds", type=int, default=5)
    run.add_argument("--steps", type=int, default=0, help="steps in a round; 0: by the size")
    run.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every program")
    run.add_argument("--programs", nargs="+", default=[OURS, EAGER, COMPILED], choices=[OURS, EAGER, COMPILED])
    run.add_argument(
        "--turns", choices=("round", "program"), help="change after each round, or after all; default by the device"
    )
    run.add_argument("--budget", type=float, metavar="SECONDS", help="for everything; what is too long is skipped")
    run.add_argument("--patience", type=float, default=1200, help="seconds without an answer after which one is ended")
    run.add_argument("--wait-quiet", type=float, default=0, metavar="SECONDS", help="for an idle machine, each round")
    run.add_argument("--list", action="store_true", help="print the cells and stop")
    show = commands.add_parser("table", help="print files of --out as Markdown")
    show.add_argument("files", nargs="+", metavar="FILE")
    args = parser.parse_args()
    if args.command == "run":
        args.turns = args.turns or ("program" if args.device == "cuda" else "round")
        if args.simd and args.turns == "program":
            fail("--simd is for programs that take turns on a CPU")
        if args.budget is not None and args.turns == "round":
            fail("--budget needs --turns program: programs that take turns end together")
    return args


def main() -> None:
    args = arguments()
    if args.command == "table":
        try:
            return print(tables.table(args.files))
        except (OSError, ValueError, KeyError) as error:
            fail(f"these results cannot be read: {error}")
    cells = [Cell.parse(text) for text in args.only] if args.only else default_cells(args.device)
    if args.list:
        return print("\n".join(map(str, cells)))
    if OURS in args.programs and not Path(args.beit2).is_file():
        fail(f"{args.beit2} is missing: build it with cargo build --release, or name it with --beit2")

    def save(result: dict[str, Any]) -> None:
        if args.out:
            with open(args.out, "a") as out:
                out.write(json.dumps(result) + "\n")

    budget, results = Budget(args.budget), []
    for at, cell in enumerate(cells, 1):
        alone = args.turns == "program"
        result = measure_alone(args, cell, budget, save) if alone else measure_in_rounds(args, cell)
        if args.turns == "round" or not result["programs"]:
            save(result)  # the other way has saved it after each program
        results.append(result)
        names = tables.header(tables.on_gpu(result))
        print(f"[{at}/{len(cells)}] " + "  ".join(f"{k}: {v}" for k, v in zip(names, tables.row(result))), flush=True)
    print("\n" + tables.machine(results[-1]) + "\n\n" + tables.markdown(results))
    if not any(result["programs"] for result in results):
        fail("nothing was measured")
    if any(result["failed"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    # What is being measured ends with the driver: it would keep the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
