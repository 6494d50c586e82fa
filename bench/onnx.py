#!/usr/bin/env python3
"""Speed of an exported classifier in ONNX Runtime beside `beit2 bench infer`, and what exporting costs.

    scripts/onnx_test.sh && target/onnx-test/bin/python bench/onnx.py [--size base] [--rounds 5] [--threads N]

Both take bytes and give 1000 logits, with the same number of threads, in the same process environment; they take turns, round by
round, while the other waits, and ratios are those within a round. Weights are random, as speed does not depend on them. Needs the
environment that scripts/onnx_test.sh makes; builds the program first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
BEIT2 = os.environ.get("BEIT2", str(ROOT / "target/release/beit2"))
# Width, blocks: of `beit2 bench infer --size`.
SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}
CLASSES, PATCH, GRID = 1000, 16, 14


def weights(size: str) -> dict[str, np.ndarray]:
    """A classifier of 224 px with a position bias for each block, in official names."""
    width, depth = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
        "head.weight": (CLASSES, width),
        "head.bias": (CLASSES,),
    }
    for block in range(depth):
        shapes |= {
            f"blocks.{block}.{name}": shape
            for name, shape in {
                "gamma_1": (width,),
                "gamma_2": (width,),
                "norm1.weight": (width,),
                "norm1.bias": (width,),
                "norm2.weight": (width,),
                "norm2.bias": (width,),
                "attn.q_bias": (width,),
                "attn.v_bias": (width,),
                "attn.relative_position_bias_table": ((2 * GRID - 1) ** 2 + 3, width // 64),
                "attn.qkv.weight": (3 * width, width),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "mlp.fc1.weight": (4 * width, width),
                "mlp.fc1.bias": (4 * width,),
                "mlp.fc2.weight": (width, 4 * width),
                "mlp.fc2.bias": (width,),
            }.items()
        }
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def export(folder: Path, source: Path, dtype: str) -> Path:
    """Exports and says what it took."""
    out = folder / f"{dtype}.onnx"
    begin = time.perf_counter()
    command = [BEIT2, "weights", "export", str(source), "--out", str(out), "--pixels", "bytes", "--dtype", dtype, "--json"]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # the largest so far; f32 comes first
    read, written = (path.stat().st_size / 2**20 for path in (source, out))
    print(f"| {dtype} | {read:.0f} | {written:.0f} | {peak:.0f} | {seconds:.1f} |")
    return out


class Program:
    """`beit2 bench infer`, one round when it is told to."""

    def __init__(self, size: str, batch: int, steps: int, threads: int) -> None:
        command = [BEIT2, "bench", "infer", "--size", size, "--batch-size", str(batch), "--steps", str(steps)]
        command += ["--rounds", "1000", "--paced", "--json", "--quiet"]
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        assert json.loads(self.line())["ready"]

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def round(self) -> float:
        """Images a second."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(json.loads(self.line())["images_per_second"])

    def close(self) -> None:
        self.process.communicate()


def onnx_round(session: ort.InferenceSession, images: np.ndarray, steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        session.run(None, {"images": images})
    return steps * len(images) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if "BEIT2" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "weights.safetensors"
        save_file(weights(arguments.size), source)
        print("| export | weights, MiB | ONNX file, MiB | peak of the process, MiB | s |\n|---|---:|---:|---:|---:|")
        model = export(folder, source, "f32")
        export(folder, source, "f16")
        options = ort.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        print(f"\n{arguments.size}, {arguments.threads} threads, ONNX Runtime {ort.__version__}\n")
        print("| images at once | beit2, images/s | ONNX Runtime, images/s | beit2 / ONNX Runtime |\n|---:|---:|---:|---:|")
        for batch, steps in ((1, 8), (8, 2)):
            images = np.random.default_rng(0).integers(0, 256, (batch, 3, 224, 224), dtype=np.uint8)
            session.run(None, {"images": images})
            program = Program(arguments.size, batch, steps, arguments.threads)
            rounds = [(program.round(), onnx_round(session, images, steps)) for _ in range(arguments.rounds)]
            program.close()
            ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratios = [one / other for one, other in rounds]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            print(f"| {batch} | {ours:.2f} | {theirs:.2f} | {ratio} |")


if __name__ == "__main__":
    main()
