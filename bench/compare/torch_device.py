"""What differs between a CPU and a GPU when PyTorch is timed: waiting, memory, a product's peak, profiles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# Of the product that shares of the peak refer to; `beit2 bench` multiplies the same.
PEAK_SIDE = {"cpu": 2048, "cuda": 8192}


def wait(device: str) -> None:
    """Returns when the device has done everything it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class Phases:
    """Splits a step into named parts. On a GPU by events, which do not hold up the queue."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """The part called `name` ends here."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.perf_counter()))

    def milliseconds(self) -> dict[str, float]:
        """Of each part; on a GPU after `wait`."""
        pairs = zip(self.marks, self.marks[1:])
        if self.cuda:
            return {name: start.elapsed_time(end) for (_, start), (name, end) in pairs}
        return {name: 1000 * (end - start) for (_, start), (name, end) in pairs}


# ---------------------------------------------------------------------------------------------------------- memory


def memory_mib(key: str) -> float:
    """A line of /proc/self/status, such as VmHWM (most memory so far) or VmRSS (memory now)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def reset_peak(device: str) -> None:
    """Makes the peak begin again, so that the compiler's own memory is not counted as the step's."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # the peak then includes the warm-up
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str, base_mib: float) -> dict[str, float]:
    """`peak_memory_mib`, all that is held, and `peak_step_memory_mib`, what steps need.

    On a GPU the first is what the allocator has reserved, the second what tensors took at once. On a CPU the first is
    the process, the second what came on top of `base_mib`.
    """
    if device == "cuda":
        held, steps = (f() / 2**20 for f in (torch.cuda.max_memory_reserved, torch.cuda.max_memory_allocated))
    else:
        held = memory_mib("VmHWM")
        steps = held - base_mib
    return {"peak_memory_mib": round(held, 1), "peak_step_memory_mib": round(steps, 1)}


# ---------------------------------------------------------------------------------------------------------- choices


def fastest_seconds(device: str, work: Callable[[], object], repeats: int) -> float:
    """Of a few runs after two that warm up."""
    seconds = []
    for _ in range(repeats + 2):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[2:])


def product_flops(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matmul on random numbers."""
    side = PEAK_SIDE[device]
    operands = [torch.rand(side, side, device=device).mul_(2).sub_(1).to(dtype) for _ in range(2)]
    seconds = fastest_seconds(device, lambda: F.linear(*operands), 20 if device == "cuda" else 4)
    operands.clear()
    if device == "cuda":
        torch.cuda.empty_cache()
    return 2 * side**3 / seconds


def faster_attention(batch: int, heads: int, tokens: int, head_dim: int, dtype: torch.dtype, train: bool) -> str:
    """`sdpa` or `explicit`, whichever attention with a relative position bias is faster on this GPU.

    The bias and the softmax of the explicit form are f32 in training, as under autocast.
    """

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype, requires_grad=train)

    q, k, v = (tensor(batch, heads, tokens, head_dim) for _ in range(3))
    bias = tensor(1, heads, tokens, tokens, dtype=torch.float32 if train else dtype)

    def run(form: str) -> None:
        with torch.set_grad_enabled(train):
            if form == "sdpa":
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(dtype))
            else:
                out = ((q * head_dim**-0.5) @ k.transpose(-2, -1) + bias).softmax(-1).to(dtype) @ v
            if train:
                torch.autograd.grad(out.sum(), (q, k, v, bias))

    seconds = {form: fastest_seconds("cuda", lambda form=form: run(form), 5) for form in ("sdpa", "explicit")}
    torch.cuda.empty_cache()
    return min(seconds, key=lambda form: seconds[form])


# --------------------------------------------------------------------------------------------------------- counting


def count_flops(step: Callable[[], object]) -> float:
    """Floating-point operations of the products in a step that is not compiled, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def kernels(device: str, step: Callable[[], object], top: int = 60) -> dict[str, Any]:
    """Time of a step by kernel (on a CPU: by operation), longest first."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    wait(device)
    with profile(activities=activities) as profiler:
        step()
        wait(device)
    own = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    rows = []
    for event in profiler.key_averages():
        micros = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if event.device_type == own and micros > 0:
            rows.append({"name": event.key, "calls": event.count, "ms": round(micros / 1000, 4)})
    rows.sort(key=lambda row: -row["ms"])
    return {
        "total_ms": round(sum(row["ms"] for row in rows), 3),
        "calls": sum(row["calls"] for row in rows),
        "kernels": rows[:top],
    }
