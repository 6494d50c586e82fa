"""Results of `compare.py` as Markdown."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

OURS, EAGER, COMPILED = "beit2", "pytorch-eager", "pytorch-compile"
NAMES = (OURS, EAGER, COMPILED)

COMMON = ["cell", "beit2 img/s", "eager", "compiled", "beit2 / eager", "beit2 / faster of the two"]
ON_CPU = [
    "step MiB: beit2", "eager", "compiled", "memory: beit2 / smaller", "process: beit2 / eager", "other load",
    "fraction of a large matmul", "of the registers",
]  # fmt: skip
ON_GPU = [
    "share of peak: beit2", "eager", "compiled", "GPU MiB: beit2", "eager", "compiled", "memory: beit2 / smaller",
    "PyTorch's tensors MiB: eager", "compiled",
]  # fmt: skip


def on_gpu(result: dict[str, Any]) -> bool:
    return result.get("device", "cpu") != "cpu"


def rounds(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return result["programs"].get(name, {}).get("rounds", [])


def speeds(result: dict[str, Any], name: str) -> list[float]:
    return [r["images_per_second"] for r in rounds(result, name)]


def ratios(result: dict[str, Any], other: str) -> list[float]:
    """Ours over another's speed, round by round."""
    return [a / b for a, b in zip(speeds(result, OURS), speeds(result, other))]


def better(result: dict[str, Any]) -> str | None:
    """The faster of PyTorch's two ways."""
    there = [name for name in (EAGER, COMPILED) if speeds(result, name)]
    return max(there, key=lambda name: statistics.median(speeds(result, name)), default=None)


def highest(result: dict[str, Any], name: str, key: str) -> float | None:
    return max((r[key] for r in rounds(result, name) if r.get(key) is not None), default=None)


def middle(result: dict[str, Any], name: str, key: str) -> float | None:
    values = [r[key] for r in rounds(result, name) if r.get(key) is not None]
    return statistics.median(values) if values else None


def share_of_peak(result: dict[str, Any], name: str) -> float | None:
    """Operations of the matmuls that the program computes, over the fastest large matmul that any of them ran."""
    peak = max((p for other in NAMES if (p := highest(result, other, "gemm_gflops"))), default=None)
    counts = [count for r in rounds(result, name) if (count := r.get("gflop_per_step"))]
    if not peak or not counts:
        return None
    return counts[0] * statistics.median(1 / r["seconds_per_step"] for r in rounds(result, name)) / peak


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "–"


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def over_smaller(values: list[float | None]) -> str:
    least = min((v for v in values[1:] if v), default=None)
    return number(values[0] / least, 2) if values[0] and least else "–"


def header(gpu: bool) -> list[str]:
    return COMMON + (ON_GPU if gpu else ON_CPU)


def row(result: dict[str, Any]) -> list[str]:
    medians = [statistics.median(s) if (s := speeds(result, name)) else None for name in NAMES]
    best = better(result)
    cells = [
        result["cell"],
        *(number(m, 2 if not on_gpu(result) else 1) for m in medians),
        spread(ratios(result, EAGER)),
        spread(ratios(result, best)) if best else "–",
    ]
    if on_gpu(result):
        memory = [highest(result, name, "gpu_memory_mib") for name in NAMES]
        tensors = [highest(result, name, "peak_step_memory_mib") for name in (EAGER, COMPILED)]
        shares = [percent(share_of_peak(result, name)) for name in NAMES]
        return cells + shares + [*map(number, memory), over_smaller(memory), *map(number, tensors)]
    memory = [highest(result, name, "peak_step_memory_mib") for name in NAMES]
    loads = [r["other_load"] for name in NAMES for r in rounds(result, name)]
    process = [highest(result, name, "peak_memory_mib") for name in (OURS, EAGER)]
    shares = [middle(result, OURS, f"share_of_{peak}_peak") for peak in ("gemm", "register")]
    rest = [over_smaller(process), percent(max(loads, default=0)), *map(percent, shares)]
    return cells + [*map(number, memory), over_smaller(memory), *rest]


def markdown(results: list[dict[str, Any]]) -> str:
    names = header(on_gpu(results[0]))
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *(row(r) for r in results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(result: dict[str, Any]) -> str:
    versions = [f"{name} {p['version'].split()[-1]}" for name, p in result["programs"].items() if p.get("version")]
    gpus = [result.get("gpu"), *(p.get("gpu") for p in result["programs"].values())]
    limit = f", limited to {simd.upper()}" if (simd := result.get("simd")) else ""
    parts = [
        next((gpu for gpu in gpus if gpu), None),
        f"{result['cpu']}{limit}, {result['cores']} cores, {result['threads']} threads",
        ", ".join(versions),
    ]
    return "; ".join(filter(None, parts))


def left_out(results: list[dict[str, Any]]) -> list[str]:
    """What has no figures, and why."""
    found = [(result["cell"], result.get(kind, {})) for result in results for kind in ("failed", "skipped")]
    return [f"{cell}: {why}" for cell, reasons in found for why in reasons.values()]


def table(files: list[str]) -> str:
    """One table for each machine and instruction set in the files; of a cell measured twice the last counts.

    Raises OSError and ValueError for files that cannot be read.
    """
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for file in files:
        for line in Path(file).read_text().splitlines():
            if line.strip():
                result = json.loads(line)
                place = (result["cpu"], result.get("simd"), result["threads"], result.get("device", "cpu"), result.get("gpu"))
                groups.setdefault(place, {})[result["cell"]] = result
    parts = []
    for cells in groups.values():
        last = list(cells.values())
        said = "".join(f"\n- {why}" for why in left_out(last))
        parts.append(f"{machine(last[-1])}; {last[0]['date'][:10]}\n\n{markdown(last)}\n{said}")
    return "\n".join(parts)
