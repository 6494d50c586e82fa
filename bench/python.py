#!/usr/bin/env python3
"""What Python costs: `Embedder` on a list of image files against `beit2 embed` on their folder.

    scripts/python_test.sh --setup && target/python-test/bin/python bench/python.py [--rounds 20] [--images 96] [--size base]

A model of that size with random weights embeds JPEG files of 400 x 300 pixels, a batch of 32 at once, with two threads that
decode. The program's own time is that of a folder with twice as many images minus that of the folder, which leaves out its start;
Python's is the same difference of two calls. Both are measured in wall time and in CPU time of the process; they run one after the
other in each round, which of them first alternates, and the ratio is that within a round. On a machine that does other work the CPU time is
the better figure.
Needs the wheel of scripts/python_test.sh; the program is the one in the wheel, or BEIT2.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import beit2

PROGRAM = os.environ.get("BEIT2", str(Path(sys.executable).with_name("beit2")))
RECIPE = """stage = "finetune"
[schedule]
steps = 1
warmup_steps = 0
batch_size = 2
"""


def run(*arguments: str) -> None:
    subprocess.run([PROGRAM, *arguments, "--quiet"], check=True, stdout=subprocess.DEVNULL)


def images(folder: Path, count: int) -> list[str]:
    """Files of smooth noise, which compress as photographs do."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for at in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(folder / f"{at:04}.jpg", quality=90)
    return sorted(str(path) for path in folder.iterdir())


def seconds(who: int, work: object, *arguments: object) -> tuple[float, float]:
    """Wall time, and CPU time of this process (RUSAGE_SELF) or of those that it starts (RUSAGE_CHILDREN)."""
    before, start = resource.getrusage(who), time.perf_counter()
    work(*arguments)  # type: ignore[operator]
    wall, after = time.perf_counter() - start, resource.getrusage(who)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def less(more: tuple[float, float], few: tuple[float, float]) -> tuple[float, float]:
    return more[0] - few[0], more[1] - few[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", default="base")
    parser.add_argument("--precision", default="f32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for label in ("a", "b"):
            images(root / "classes" / label, 2)
        (root / "recipe.toml").write_text(RECIPE)
        model, flags = str(root / "model"), ["--size", args.size, "--init", "scratch", "--data", str(root / "classes")]
        run("finetune", str(root / "recipe.toml"), "--out", model, "--val", str(root / "classes"), *flags)
        one, two = images(root / "one", args.images), images(root / "two", 2 * args.images)
        embedder = beit2.Embedder.open(model, precision=args.precision)

        def program(folder: str) -> None:
            out, more = str(root / "features.npy"), ["--force", "--precision", args.precision]
            run("embed", str(root / folder), "--weights", model, "--out", out, *more)

        for warm in (lambda: program("one"), lambda: embedder(one)):
            warm()
        found = []
        for number in range(args.rounds):
            pair = {}
            for who in ("program", "python") if number % 2 == 0 else ("python", "program"):
                work = program if who == "program" else embedder
                kind = resource.RUSAGE_CHILDREN if who == "program" else resource.RUSAGE_SELF
                names = ("two", "one") if who == "program" else (two, one)
                pair[who] = less(seconds(kind, work, names[0]), seconds(kind, work, names[1]))
            found.append(pair)
        for at, what in enumerate(("wall time", "CPU time")):
            ratios = sorted(pair["python"][at] / pair["program"][at] for pair in found)
            rates = {who: statistics.median(args.images / pair[who][at] for pair in found) for who in ("program", "python")}
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            print(f"{what}: program {rates['program']:.2f} images/s, Embedder {rates['python']:.2f} images/s; time of Embedder /"
                  f" time of the program: median {statistics.median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}, {args.rounds} rounds")


if __name__ == "__main__":
    main()
