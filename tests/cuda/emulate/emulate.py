"""Runs own kernels from Python, on numpy arrays: for tests of a kernel file without Rust.

    from emulate import Module
    kernels = Module("norm.cu")                    # beside device.cuh; compiled by g++ when it changed
    kernels.launch("norm_forward_f32", grid=(rows,), block=(256,), arguments=[x, gamma, out, np.uint32(rows), np.float32(1e-6)])

An argument is a numpy array (its address is passed, as a pointer), a numpy scalar (passed as it is), or bytes (a struct
by value). Arrays must be contiguous; bf16 is a uint16 array (`to_bf16`, `from_bf16`).
"""
import ctypes
import hashlib
import pathlib

import numpy as np

import compile as compiler


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.c_uint),
        ("sizes", ctypes.POINTER(ctypes.c_uint)),
        ("max_threads", ctypes.c_uint),
        ("shared_begin", ctypes.c_void_p),
        ("shared_end", ctypes.c_void_p),
    ]


class Module:
    """The kernels of one file. A file that does not include device.cuh gets it in front, as in the program."""

    def __init__(self, path, optimize="2"):
        path = pathlib.Path(path)
        if not path.exists():
            path = compiler.DEVICE_HEADER.parent / path
        source = path.read_text()
        if '#include "device.cuh"' not in source:
            source = '#include "device.cuh"\n' + source
        folder = compiler.runtime()
        known = [compiler.DEVICE_HEADER, *compiler.HERE.glob("*.h"), compiler.HERE / "compile.py"]
        text = source + optimize + "".join(header.read_text() for header in known if header.exists())
        library = folder / f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
        if not library.exists():
            compiler.compile_source(source, library, str(path), [path.resolve().parent, compiler.DEVICE_HEADER.parent], optimize)
        self._library = ctypes.CDLL(str(library))
        count = ctypes.c_uint()
        self._library.emulate_kernels.restype = ctypes.POINTER(_Kernel)
        table = self._library.emulate_kernels(ctypes.byref(count))
        self.kernels = {table[i].name.decode(): table[i] for i in range(count.value)}

    def launch(self, name, grid, block, arguments, shared_bytes=0):
        """Runs a kernel to its end; a mistake in it ends the process with a sentence."""
        kernel = self.kernels[name]
        sizes = [kernel.sizes[i] for i in range(kernel.parameters)]
        if len(sizes) != len(arguments):
            raise ValueError(f"{name} has {len(sizes)} parameters, not {len(arguments)}")
        values = []
        for position, (argument, size) in enumerate(zip(arguments, sizes)):
            if isinstance(argument, np.ndarray):
                if not argument.flags.c_contiguous:
                    raise ValueError(f"{name}: argument {position} is not contiguous")
                raw = ctypes.c_uint64(argument.ctypes.data)
            elif argument is None:
                raw = ctypes.c_uint64(0)
            else:
                data = argument if isinstance(argument, bytes) else argument.tobytes()
                raw = ctypes.create_string_buffer(data, len(data))
            if ctypes.sizeof(raw) != size:
                raise ValueError(f"{name}: argument {position} has {ctypes.sizeof(raw)} bytes, the parameter {size}")
            values.append(raw)
        pointers = (ctypes.c_void_p * max(len(values), 1))(*[ctypes.addressof(value) for value in values])
        self._library.emulate_launch(
            ctypes.c_void_p(kernel.entry), _three(grid), _three(block), ctypes.c_uint(shared_bytes), pointers
        )


def _three(sizes):
    sizes = tuple(sizes) if hasattr(sizes, "__len__") else (sizes,)
    return (ctypes.c_uint * 3)(*(sizes + (1, 1, 1))[:3])


def to_bf16(values):
    """f32 → bf16 as uint16, to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bf16(bits):
    """bf16 as uint16 → f32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
