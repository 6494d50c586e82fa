"""Names of the five longest kernels, for ncu: `longest.py NSYS.csv KERNELS.json`, the first of the files that is there.

NSYS.csv is `nsys stats --report cuda_gpu_kern_sum --format csv`; KERNELS.json is `beit2 bench --kernel-times`, whose matmuls have
no kernel's name and are left out.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path


def from_nsys(file: Path) -> list[str]:
    """The last column holds names, longest first, after a head that begins with a percentage."""
    with file.open() as lines:
        rows = [row for row in csv.reader(lines) if row and re.fullmatch(r"[0-9.]+", row[0])]
    # A template or a C++ signature: the last name before its arguments.
    return [re.split(r"[<(]", row[-1])[0].split()[-1].split("::")[-1] for row in rows]


def from_ours(file: Path) -> list[str]:
    """Longest first."""
    names = [kernel["name"] for kernel in json.loads(file.read_text())["kernels"]]
    return [name for name in names if re.fullmatch(r"\w+", name) and name != "zeros"]


def main() -> None:
    nsys, ours = map(Path, sys.argv[1:3])
    names = from_nsys(nsys) if nsys.exists() else []
    names = names or (from_ours(ours) if ours.exists() else [])
    print("\n".join(dict.fromkeys(names[:5])))


if __name__ == "__main__":
    main()
