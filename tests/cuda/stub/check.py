"""Tests what the stand-in driver says about memory that a library exchanges on a stream of its own: `check.py FOLDER_OF_STUB`.

FOLDER_OF_STUB holds the libcuda.so that build.sh made.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

BYTES = 4096


def handle(call, *arguments) -> ctypes.c_void_p:
    """What a call of the driver gives through its first argument."""
    value = ctypes.c_void_p()
    assert call(ctypes.byref(value), *arguments) == 0, call
    return value


def said(work) -> str:
    """What the stub writes to stderr meanwhile."""
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            work()
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        return file.read().decode()


def main() -> int:
    cuda = ctypes.CDLL(str(Path(sys.argv[1]) / "libcuda.so"))
    cuda.cuInit(0)
    context = handle(cuda.cuDevicePrimaryCtxRetain, 0)
    assert cuda.cuCtxSetCurrent(context) == 0
    main_stream, exchanges = (handle(cuda.cuStreamCreate, 1) for _ in range(2))
    event = handle(cuda.cuEventCreate, 2)
    at = handle(cuda.cuMemAlloc_v2, ctypes.c_size_t(BYTES))
    half = ctypes.c_ulong(BYTES // 2)

    def exchange() -> None:
        cuda.stub_exchange(exchanges, at, half)

    def use(offset: int = 0) -> None:
        cuda.stub_holds(ctypes.c_ulong(at.value + offset), half)

    def follow(first: ctypes.c_void_p, second: ctypes.c_void_p) -> None:
        assert cuda.cuEventRecord(event, first) == 0 and cuda.cuStreamWaitEvent(second, event, 0) == 0

    assert said(exchange) == "", "nothing came before"
    assert "while they are exchanged" in said(use)
    assert said(lambda: use(BYTES // 2)) == "", "the other half"
    follow(main_stream, exchanges)
    assert "while they are exchanged" in said(use), "the wrong stream waited"
    follow(exchanges, main_stream)
    assert said(use) == "", "it was waited for"
    follow(exchanges, main_stream)
    exchange()
    assert "while they are exchanged" in said(use), "a later exchange"
    print("exchanges: what is used too early is told")
    return 0


sys.exit(main())
