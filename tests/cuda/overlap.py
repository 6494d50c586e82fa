"""How many exchanges of a step begin before the last matmul of its backward pass: `overlap.py STUB_DIR [LEAST]`.

Reads the log of a run on several emulated cards. Every step of every device must have LEAST of them (1), and no device may use the
memory that is exchanged, which the stand-ins refuse (STUB_STRICT=1).
"""

from __future__ import annotations

import collections
import sys
from pathlib import Path

import stublog

# What a step ends with.
OPTIMIZER = "parameters_adamw"


def steps(lines: list[stublog.Line]) -> list[list[stublog.Line]]:
    """The lines of one device, step by step; what follows the last step is left out."""
    found, step = [], []
    for line in lines:
        if line.kernel() == OPTIMIZER:
            # One step has several launches of it.
            if any(other.kind == "gemm" for other in step):
                found.append(step)
            step = []
        else:
            step.append(line)
    return found


def early(step: list[stublog.Line]) -> tuple[int, int]:
    """Exchanges before the last matmul, and all."""
    last = max(at for at, line in enumerate(step) if line.kind == "gemm")
    places = [at for at, line in enumerate(step) if line.kind == "nccl"]
    return sum(at < last for at in places), len(places)


def main() -> int:
    folder, least = Path(sys.argv[1]), int((sys.argv[2:] or ["1"])[0])
    devices = collections.defaultdict(list)
    for line in stublog.read(folder):
        devices[line.thread].append(line)
    devices = {thread: steps(lines) for thread, lines in devices.items() if any(line.kind == "nccl" for line in lines)}
    counts = [early(step) for device in devices.values() for step in device]
    if len(devices) < 2 or not counts:
        print(f"{len(devices)} devices exchanged gradients, of two at least")
        return 1
    fewest = min(counts)
    print(f"{len(devices)} devices, {len(counts)} steps: {fewest[0]} of {fewest[1]} exchanges begin before the last matmul, {least} at least")
    return int(fewest[0] < least)


sys.exit(main())
