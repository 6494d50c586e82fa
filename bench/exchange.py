#!/usr/bin/env python3
"""Estimates what exchanging gradients between GPUs adds to a step of pretraining, after the backward pass and during it.

    bench/exchange.py          # the table of docs/benchmarks/gpu.md

Times of kernels are those of bench/roofline.py on an H100, the cautious ones. A ring of n devices sends 2(n − 1)/n of the bytes each way.
An exchange is asked for when its bucket is complete, and begins when the one before has ended. That exchanges and kernels slow each
other down is not in it. Standard library only.
"""

from __future__ import annotations

import math

import roofline

# Data sheets, bytes a second each way: NVLink of an H100 SXM, 16 lanes of PCIe. What is reached is a guess.
LINKS = {"NVLink": 450e9 * 0.75, "PCIe 5": 63e9 * 0.6, "PCIe 4": 31.5e9 * 0.6}
# An exchange takes this long even without data.
LATENCY = 30e-6
# Bytes that a bucket has at least: `BUCKET` of gpu/cuda/block/means.rs.
BUCKET = 25 << 20
# Trained blocks with the two of the patch aggregation head; parameters; width and heads.
SIZES = {"base": (14, 106.1e6, 768, 12), "large": (26, 336.8e6, 1024, 16)}


def block_backward(batch: int, width: int, heads: int) -> float:
    """Seconds of the backward pass of one block."""
    roofline.WIDTH, roofline.HEADS, roofline.HIDDEN = width, heads, 4 * width
    step = roofline.Step(batch)
    step.block(trained=True)
    backward = [op for op in step.ops if "gradient" in op.name or "backward" in op.name]
    return sum(op.seconds("H100", False) for op in backward)


def exposed(blocks: int, parameters: float, width: int, seconds: float, devices: int, link: float) -> tuple[float, float]:
    """Seconds that a step is longer by, with all exchanges after the backward pass and with those of blocks during it."""

    def exchange(size: float) -> float:
        return 2 * (devices - 1) / devices * size / link + LATENCY

    of_block = 4.0 * (12 * width * width + 15 * width)
    rest = 4 * parameters - blocks * of_block
    together = math.ceil(BUCKET / of_block)
    free = 0.0
    for first in range(0, blocks, together):
        end = min(first + together, blocks)
        free = max(free, end * seconds) + exchange((end - first) * of_block)
    return exchange(4 * parameters), free - blocks * seconds + exchange(rest)


def main() -> None:
    """The table."""
    print("| size | devices | link | gradients, MB | backward pass of the blocks, ms | exchanged after it, ms | during it: what is left, ms | hidden |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for size, (blocks, parameters, width, heads) in SIZES.items():
        seconds = block_backward(128, width, heads)
        for devices in (2, 8):
            for link, bandwidth in LINKS.items():
                after, during = exposed(blocks, parameters, width, seconds, devices, bandwidth)
                cells = [size, devices, link, f"{4 * parameters / 1e6:.0f}", f"{1e3 * blocks * seconds:.1f}", f"{1e3 * after:.1f}", f"{1e3 * during:.1f}"]
                print("| " + " | ".join(map(str, cells)) + f" | {100 * (1 - during / after):.0f} % |")


if __name__ == "__main__":
    main()
