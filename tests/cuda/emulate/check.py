#!/usr/bin/env python3
"""Tests the emulator: right kernels give right results in every order, and each mistake is told. Needs numpy and g++."""
import os
import subprocess
import sys

import numpy as np

from emulate import Module, from_bf16, to_bf16


def right(kernels):
    """Results of kernels without mistakes."""
    random = np.random.default_rng(0)
    x, sums = random.standard_normal((33, 700), np.float32), np.empty(33, np.float32)
    kernels.launch("sum_rows", 33, 256, [x, sums, np.int32(700)])
    np.testing.assert_allclose(sums, x.sum(1, dtype=np.float64), atol=1e-4)

    a, b = to_bf16(random.standard_normal((16, 16))), to_bf16(random.standard_normal((16, 8)))
    c = np.empty((16, 8), np.float32)
    kernels.launch("multiply", 1, 32, [a, b, c, np.int32(1)], shared_bytes=768)
    np.testing.assert_allclose(c, from_bf16(a) @ from_bf16(b), atol=1e-5)
    kernels.launch("multiply", 1, 32, [a, b, c, np.int32(0)], shared_bytes=768)
    assert np.isnan(c).all(), "a missing cp_async_wait is not seen"

    x = np.arange(64, dtype=np.float32)
    kernels.launch("reverse", 1, 64, [x, np.int32(1)])
    assert (x == np.arange(64)[::-1]).all()
    kernels.launch("reverse", 1, 64, [x, np.int32(0)])
    assert np.isnan(x).any(), "a missing barrier is not seen"

    out, lane = np.empty((4, 32), np.int32), np.arange(32)
    kernels.launch("lanes", 1, 32, [out])
    assert (out[0] == np.maximum(lane - 1, 0)).all()
    assert (out[1] == np.where(lane % 8 < 5, lane + 3, lane)).all()
    assert (out[2].view(np.uint32) == sum(1 << i for i in range(0, 32, 3))).all()
    assert (out[3] == 5).all()

    first, second, y = np.array([1, 2], np.float32), np.array([3, 4], np.float32), np.empty(4, np.float32)
    pair = np.array([first.ctypes.data, second.ctypes.data, 1], np.uint64).tobytes()
    kernels.launch("by_value", 1, 4, [pair, y, np.float64(10)])
    assert (y == [20, 40, 20, 40]).all()


# Kernel, threads, further arguments, dynamic shared bytes, and what the emulator says.
MISTAKES = (
    ("waits_for_ever", 64, [], 0, "waits for ever: threads 0 to 31 at __syncthreads(), 32 to 63 finished"),
    ("lanes_disagree", 32, [], 0, "wait in different warp operations"),
    ("beyond_an_array", 1, [np.int32(32)], 0, "out of its bounds"),
    ("beyond_dynamic_memory", 1, [np.int32(32)], 128, "not allocated"),
    ("beyond_memory", 1, [], 0, "not allocated"),
    ("not_aligned", 1, [], 0, "not aligned"),
    ("bounded", 64, [], 0, "64 threads in a block; it is compiled for 1 to 32"),
)


def main():
    kernels = Module(os.path.join(os.path.dirname(os.path.abspath(__file__)), "check.cu"))
    if len(sys.argv) > 1:
        name, threads, arguments, shared, _ = next(row for row in MISTAKES if row[0] == sys.argv[1])
        kernels.launch(name, 1, threads, [np.zeros(64, np.float32), *arguments], shared)
        return
    for order in ("forward", "reverse", "shuffle:1", "shuffle:2"):
        os.environ["BEIT2_EMULATE_ORDER"] = order
        right(kernels)
        print(f"right results in order {order}")
    for name, *_, said in MISTAKES:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
        if done.returncode == 0 or said not in done.stderr or f"kernel {name}" not in done.stderr:
            sys.exit(f"{name}: the emulator should say {said!r}; it ends with {done.returncode} and says {done.stderr!r}")
        print(f"told: {name}")


if __name__ == "__main__":
    main()
