"""Reads what the stub driver and the stand-ins for NVRTC, cuBLASLt and NCCL logged.

A line of `launches.tsv` is `seconds thread [cpuTHREAD/PROCESS] kind …`, separated by tabs: time since the start, who
called, processor seconds of that thread and of the process (with STUB_CPU=1), what was called, and its arguments.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# What a limit is on, and the lines that count for it.
KINDS = {
    "launches": {"launch", "gemm", "nccl", "memset", "d2d", "d2d2d", "p2p"},
    "copies_in": {"h2d", "h2d2d"},
    "copies_out": {"d2h", "d2h2d"},
    "waits": {"eventsync", "streamsync", "ctxsync"},
    "allocations": {"alloc", "allochost", "free", "freehost", "oom"},
}
OF_KIND = {kind: name for name, kinds in KINDS.items() for kind in kinds}


@dataclass
class Line:
    """One call."""

    seconds: float
    thread: int
    # Processor seconds so far; `None` without STUB_CPU=1.
    thread_cpu: float | None
    process_cpu: float | None
    kind: str
    rest: list[str]

    def kernel(self) -> str:
        """Name of what is launched."""
        if self.kind == "launch":
            return self.rest[1] if len(self.rest) > 1 else "?"
        return self.kind


def read(folder: Path) -> list[Line]:
    """All lines of a run; the last one may be cut off, and is then left out."""
    lines = []
    with open(folder / "launches.tsv", errors="replace") as file:
        for text in file:
            fields = text.rstrip("\n").split("\t")
            if len(fields) < 3 or not text.endswith("\n"):
                continue
            seconds, thread, *rest = fields
            thread_cpu = process_cpu = None
            if rest[0].startswith("cpu"):
                of_thread, _, of_process = rest.pop(0)[3:].partition("/")
                thread_cpu = float(of_thread)
                process_cpu = float(of_process) if of_process else None
            lines.append(Line(float(seconds), int(thread), thread_cpu, process_cpu, rest[0], rest[1:]))
    return lines


@dataclass
class Step:
    """What one warm step does: the difference of a long and a short run, divided by the steps that the long one has more."""

    counts: dict[str, float]
    bytes_in: float
    kernels: dict[str, float]
    # Milliseconds of processor time: median over steps; of the busiest thread that calls the driver, and of all threads.
    thread_ms: float | None = None
    process_ms: float | None = None
    # Sizes of the copies to the device; of those from memory that is not pinned, the bytes.
    copies: dict[str, float] = field(default_factory=dict)
    pageable_bytes: float = 0.0
    # The most device memory that the driver has given out.
    peak_bytes: float = 0.0
    # cuBLASLt's products.
    gemms: float = 0.0
    gemm_flop: float = 0.0


def _totals(lines: list[Line]) -> tuple[collections.Counter, collections.Counter, collections.Counter]:
    counts, kernels, copies = collections.Counter(), collections.Counter(), collections.Counter()
    for line in lines:
        if name := OF_KIND.get(line.kind):
            counts[name] += 1
        if line.kind in KINDS["launches"]:
            kernels[line.kernel()] += 1
        if line.kind in KINDS["copies_in"]:
            copies[line.rest[0]] += 1
    return counts, kernels, copies


def gemm_flop(line: Line) -> float:
    """Of a product: `gemm ROWSxCOLUMNSxDEPTH types transposes batch …`."""
    size = 2.0
    for side in line.rest[0].split("x"):
        size *= int(side)
    return size * int(line.rest[3])


def per_step(long: list[Line], short: list[Line], steps: int, value: Callable[[Line], float]) -> float:
    """A sum over lines, of one step."""
    return (sum(map(value, long)) - sum(map(value, short))) / steps


def marker(long: list[Line], short: list[Line], steps: int) -> str | None:
    """A kernel that runs exactly once a step, the last of those in a step's order; `None` where there is none."""
    more = collections.Counter(line.kernel() for line in long if line.kind == "launch")
    more.subtract(line.kernel() for line in short if line.kind == "launch")
    once = {name for name, count in more.items() if count == steps}
    return next((line.kernel() for line in reversed(long) if line.kind == "launch" and line.kernel() in once), None)


def after(lines: list[Line], name: str, count: int) -> list[Line]:
    """What comes behind the `count`-th launch of a kernel."""
    places = [at for at, line in enumerate(lines) if line.kind == "launch" and line.kernel() == name]
    return lines[places[count - 1] + 1 :] if len(places) >= count else []


def step(long: list[Line], short: list[Line], steps: int, warm: int) -> Step:
    """What one of the `steps` does by which the runs differ. The first `warm` steps may take memory from the driver; which of
    them takes how much depends on the order in which threads run."""
    (a, a_kernels, a_copies), (b, b_kernels, b_copies) = _totals(long), _totals(short)
    counts = {name: (a[name] - b[name]) / steps for name in KINDS}
    kernels = {name: (a_kernels[name] - b_kernels[name]) / steps for name in a_kernels | b_kernels}
    copies = {size: (a_copies[size] - b_copies[size]) / steps for size in a_copies | b_copies}
    result = Step(
        counts,
        sum(int(size) * count for size, count in copies.items()),
        {name: count for name, count in kernels.items() if count},
        copies={size: count for size, count in copies.items() if count},
    )
    result.gemms = per_step(long, short, steps, lambda line: line.kind == "gemm")
    result.gemm_flop = per_step(long, short, steps, lambda line: gemm_flop(line) if line.kind == "gemm" else 0.0)
    result.pageable_bytes = per_step(
        long, short, steps, lambda line: int(line.rest[0]) if line.kind in KINDS["copies_in"] and "pageable" in line.rest else 0
    )
    live = [float(line.rest[2].split()[0]) for line in long if line.kind == "alloc" and len(line.rest) > 2]
    result.peak_bytes = 1e6 * max(live, default=0.0)
    if (name := marker(long, short, steps)) is None:
        return result
    taken = [_totals(after(lines, name, warm))[0]["allocations"] for lines in (long, short)]
    result.counts["allocations"] = (taken[0] - taken[1]) / steps
    marks = [line for line in long if line.kind == "launch" and line.kernel() == name]
    # The last marks are of steps that are timed part by part; those before follow each other as in training.
    marks = marks[-steps - 2 : -1]
    between = list(zip(marks, marks[1:]))
    if between and marks[0].thread_cpu is not None:
        result.thread_ms = statistics.median(1e3 * (b.thread_cpu - a.thread_cpu) for a, b in between)
        if marks[0].process_cpu is not None:
            result.process_ms = statistics.median(1e3 * (b.process_cpu - a.process_cpu) for a, b in between)
    return result
