#!/usr/bin/env python3
"""Compares a short pretraining on a device with the same one on the CPU, loss by loss.

    bench/loss_curve.py --beit2 target/release/beit2 --device cuda --out results
    bench/loss_curve.py --beit2 target/release/beit2 --device cuda --out results --reference pack/curve

The model is that of the quickstart with heads of 64 columns, images of 64 px and the paper's
initial weights (width 128, 4 blocks, patch aggregation, 64 patches), the images are
those inside the program. Seed, images, masks and initial weights are the same on every device, so the first losses agree to
rounding; later ones drift apart, because rounding changes the weights. OUT/curve.json gets both curves after each run. The status
is 1 when a curve leaves its tolerance. `--prepare FOLDER` makes the CPU's half alone, to be carried to a machine with a GPU.
Standard library only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

STEPS, WARM_UP_TOKENIZER = 60, 60
# Relative difference of the losses: of each of the first ten, and of the mean of the last ten. The CPU in bf16 against the
# CPU in f32 differs by 7.5e-4 and 3.6e-3.
TOLERANCE = {"f32": (2e-4, 1e-2), "bf16": (5e-3, 2e-2)}


class Failed(Exception):
    """One sentence."""


def run(args: list[str], end: float) -> float:
    """Runs the program, until `end` of the monotonic clock at most → seconds."""
    started = time.monotonic()
    limit = max(0.0, end - started)
    try:
        subprocess.run(args, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(args[1:3])} was not done after the {limit:.0f} s that were left") from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()] or ["it left no message"]
        raise Failed(f"{' '.join(args[1:3])} ended with status {error.returncode}: {said[-1].strip()[:300]}") from None
    return time.monotonic() - started


def losses(folder: Path) -> list[float]:
    """Of every step."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line and line["kind"] == "step"]


def train_tokenizer(beit2: str, weights: Path, end: float) -> None:
    """Writes the weights of the tokenizer that all runs learn from, trained on the CPU."""
    folder, steps = weights.with_suffix(""), ["--steps", str(WARM_UP_TOKENIZER)]
    shutil.rmtree(folder, ignore_errors=True)
    size = ["--set", "model.image_size=64", "--set", "model.code_dim=16", "--set", "init.std=0.02"]
    size += ["--set", "targets.whiten=false"]
    run([beit2, "tokenizer", "train", "quickstart_tokenizer", "--seed", "0", *steps, *size, "--out", str(folder), "-q"], end)
    shutil.copyfile(folder / "last" / "model.safetensors", weights)
    shutil.rmtree(folder)


def pretrain(beit2: str, device: str, precision: str, tokenizer: Path, folder: Path, end: float) -> tuple[list[float], float]:
    """Losses and seconds of a pretraining."""
    shutil.rmtree(folder, ignore_errors=True)
    seconds = run(
        [
            beit2, "pretrain", "quickstart_pretrain", "--seed", "0", "--steps", str(STEPS), "--tokenizer", str(tokenizer),
            "--precision", precision, "--device", device, "--out", str(folder), "-q",
            "--set", "model.vit.heads=2", "--set", "model.vit.image_size=64", "--set", "mask.patches=25",
            "--set", "init.std=0.02", "--set", "logging.log_every=1", "--set", "schedule.warmup_steps=20",
        ],
        end,
    )  # fmt: skip
    curve = losses(folder)
    shutil.rmtree(folder)
    if len(curve) != STEPS:
        raise Failed(f"{len(curve)} of {STEPS} steps are in the metrics")
    return curve, seconds


def differences(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """The largest relative difference of the first ten losses, and that of the means of the last ten."""
    first = max(abs(a - b) / abs(b) for a, b in zip(ours[:10], theirs[:10]))
    a, b = (sum(curve[-10:]) / len(curve[-10:]) for curve in (ours, theirs))
    return first, abs(a - b) / abs(b)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares a short pretraining on a device with the CPU's.")
    parser.add_argument("--beit2", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--reference", type=Path, help="what --prepare made")
    parser.add_argument("--prepare", type=Path, help="make the CPU's half in this folder, and nothing else")
    parser.add_argument("--precision", nargs="*", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--timeout", type=float, default=600, help="seconds for everything")
    args = parser.parse_args()
    if not args.prepare and not args.out:
        parser.error("give --out or --prepare")
    end = time.monotonic() + args.timeout
    here = (args.prepare or args.out).resolve()
    here.mkdir(parents=True, exist_ok=True)
    reference = args.reference.resolve() if args.reference else here
    tokenizer = reference / "tokenizer.safetensors"
    try:
        if not (reference / "cpu.json").exists():
            train_tokenizer(args.beit2, tokenizer, end)
            curve, seconds = pretrain(args.beit2, "cpu", "f32", tokenizer, here / "run", end)
            (reference / "cpu.json").write_text(json.dumps({"losses": curve, "seconds": round(seconds, 1)}) + "\n")
        if args.prepare:
            return 0
        theirs = json.loads((reference / "cpu.json").read_text())["losses"]
    except Failed as error:
        print(f"loss_curve.py: the CPU's half: {error}", file=sys.stderr)
        return 1
    result: dict = {"device": args.device, "steps": STEPS, "cpu_f32": theirs}
    status = 0
    for precision in args.precision:
        try:
            ours, seconds = pretrain(args.beit2, args.device, precision, tokenizer, here / "run", end)
        except Failed as error:
            print(f"loss_curve.py: {precision}: {error}", file=sys.stderr, flush=True)
            status = 1
            continue
        first, last = differences(ours, theirs)
        limits = TOLERANCE[precision]
        good = first <= limits[0] and last <= limits[1]
        result[precision] = {"losses": ours, "seconds": round(seconds, 1), "first": first, "last": last, "within": good}
        (here / "curve.json").write_text(json.dumps(result, indent=1) + "\n")
        print(
            f"{args.device} {precision}: losses differ from the CPU's by at most {first:.1e} in the first ten steps (limit {limits[0]:g})"
            f" and by {last:.1e} in the mean of the last ten (limit {limits[1]:g}); {seconds:.1f} s: {'good' if good else 'NOT GOOD'}",
            flush=True,
        )
        if not good:
            print(f"loss_curve.py: {precision} on {args.device} does not follow the CPU's curve", file=sys.stderr, flush=True)
            status = 1
    return status


if __name__ == "__main__":
    # The program that trains ends with this one: it would keep the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
