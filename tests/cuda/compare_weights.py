"""Compares the weights of two runs of one experiment: `compare_weights.py RUN RUN f32|bf16`."""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path

# How much of a tensor's size may differ: sums of f32 in another order, some steps on; and with operands of 8 bits, of which
# the last may round the other way (two CPU devices: 2.5e-3, of biases that began at 0).
ALLOWED = {"f32": 1e-5, "bf16": 1e-2}
# Tensors that start at 0 and hardly move.
ABSOLUTE = 1e-6


def read(run: Path) -> dict[str, list[float]]:
    """All f32 tensors of a run's last model, by name."""
    file = max(run.rglob("model.safetensors"), key=lambda path: path.stat().st_mtime)
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = list(struct.unpack(f"<{(end - begin) // 4}f", data[begin:end]))
    return tensors


def main() -> int:
    a, b = (read(Path(run)) for run in sys.argv[1:3])
    allowed = ALLOWED[sys.argv[3]]
    if not a or a.keys() != b.keys():
        print("the runs have other tensors")
        return 1
    worst, wrong = (0.0, "none"), 0
    for name in a:
        size = math.sqrt(sum(x * x for x in a[name]))
        difference = math.sqrt(sum((x - y) ** 2 for x, y in zip(a[name], b[name], strict=True)))
        worst = max(worst, (difference / (size or 1.0), name))
        if not difference <= ABSOLUTE + allowed * size:
            print(f"{name} differs by {difference:.1e} of {size:.1e}")
            wrong += 1
    print(f"{sys.argv[3]}: {len(a)} tensors, the largest relative difference is {worst[0]:.1e} ({worst[1]}), allowed {allowed:.0e}")
    return int(wrong > 0)


sys.exit(main())
