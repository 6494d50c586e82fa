#!/usr/bin/env python3
"""Speed and accuracy of `--precision int8` against f32 and bf16: the tables of docs/benchmarks/int8.md.

    bench/int8.py [--rounds 5] [--run RUN]      # RUN: a run whose features are compared too, such as a quickstart's

Speed: a base classifier with random weights, one and eight images; the precisions run one after the other in each round, each in
a process of its own, and ratios are those within a round. Accuracy: k-NN of the features of the bundled teacher (trained),
and of RUN, on the bundled images, and how far the features turn (1 - cosine). Builds the program first. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import statistics
import struct
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEIT2 = os.environ.get("BEIT2", str(ROOT / "target/release/beit2"))
PRECISIONS = ("f32", "bf16", "int8")


def beit2(*arguments: str) -> list[dict]:
    """The JSON objects that a command prints."""
    done = subprocess.run([BEIT2, *arguments, "--json"], capture_output=True, text=True, check=True)
    decoder, text, found = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


def speed(rounds: int) -> None:
    print("| base, images at once | f32 images/s | bf16 / f32 | int8 / f32 | peak MiB of a process: f32 | bf16 | int8 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for batch in (1, 8):
        times: dict[str, list[float]] = {name: [] for name in PRECISIONS}
        memory: dict[str, float] = {}
        for _ in range(rounds):
            for name in PRECISIONS:
                flags = ("--size", "base", "--batch-size", str(batch), "--precision", name, "--rounds", "1")
                result = beit2("bench", "infer", *flags, "--steps", "8" if batch == 1 else "2", "--quiet")[-1]
                times[name].append(result["images_per_second"])
                memory[name] = result["peak_memory_mib"]

        cells = [f"{statistics.median(times['f32']):.2f}", ratio(times["bf16"], times["f32"]), ratio(times["int8"], times["f32"])]
        cells += [f"{memory[name]:.0f}" for name in PRECISIONS]
        print(f"| {batch} | " + " | ".join(cells) + " |")


def ratio(times: list[float], base: list[float]) -> str:
    of_rounds = [a / b for a, b in zip(times, base, strict=True)]
    return f"{statistics.median(of_rounds):.2f} ({min(of_rounds):.2f}–{max(of_rounds):.2f})"


def rows(path: Path) -> list[tuple[float, ...]]:
    """Rows of a two-dimensional .npy file of f32."""
    data = path.read_bytes()
    length = struct.unpack("<H", data[8:10])[0]
    header = ast.literal_eval(data[10 : 10 + length].decode())
    width = math.prod(header["shape"][1:])
    values = struct.unpack(f"<{header['shape'][0] * width}f", data[10 + length :])
    return [values[at : at + width] for at in range(0, len(values), width)]


def accuracy(weights: list[str]) -> None:
    print("\n| features | precision | k-NN top-1 (k = 20) | 1 − cosine to f32: mean | largest |")
    print("|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in weights:
            exact: list[tuple[float, ...]] = []
            for precision in PRECISIONS:
                common = ("--weights", name, "--precision", precision, "--quiet")
                out = Path(folder) / f"{precision}.npy"
                beit2("embed", "bundled:val", *common, "--out", str(out), "--force")
                found = rows(out)
                exact = exact or found
                turned = [1 - cosine(a, b) for a, b in zip(exact, found, strict=True)]
                scores = beit2("knn", *common, "--data", "bundled:train", "--val", "bundled:val")[-1]["knn"]
                top1 = next((score["top1"] for score in scores if score["k"] == 20), scores[0]["top1"])
                share = top1 if top1 > 1 else 100 * top1
                print(f"| {name} | {precision} | {share:.1f} % | {statistics.mean(turned):.1e} | {max(turned):.1e} |")


def cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run")
    arguments = parser.parse_args()
    if "BEIT2" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    speed(arguments.rounds)
    accuracy(["bundled:teacher"] + ([arguments.run] if arguments.run else []))


if __name__ == "__main__":
    main()
