#!/usr/bin/env python3
"""Compiles CUDA C by g++ into a shared object that runs on the CPU.

    compile.py KERNELS.cu -o KERNELS.so [--include FOLDER]... [--optimize 1] [-D NAME]...

The object holds the table of its kernels (`emulate_kernels`) and `emulate_launch(address, grid, block, shared_bytes,
arguments)`; `emulate.py` calls them from Python. `libemulate.so`, which it needs, is built in target/cuda-emulate or in
BEIT2_EMULATE_BUILD when it is missing or older than its sources.

Not all of CUDA C is valid C++. Before g++ sees a source,
  - `extern __shared__ T name[];` becomes a pointer to the dynamic shared memory of the launch, and
  - the table of kernels is appended, with the names and launch bounds found by `__global__`.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
DEVICE_HEADER = HERE.parents[2] / "crates/beit2-kernels/src/gpu/cuda/kernels/device.cuh"

# Bounds of arrays and alignment of pointers are checked; -fno-weak lets templates have shared memory, whose section
# must not be mixed with sections that the linker merges.
FLAGS = """-std=c++17 -fPIC -shared -fno-weak -fno-exceptions -fno-rtti -fno-strict-aliasing -ffp-contract=fast
           -fsanitize=bounds,alignment -fsanitize-undefined-trap-on-error -fno-math-errno -march=native -w
           -fno-gnu-unique -Wl,-Bsymbolic -DBEIT2_EMULATE""".split()

DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?P<align>(?:__align__\s*\(\s*\d+\s*\)|alignas\s*\(\s*\d+\s*\))\s*)?"
    r"(?P<type>[\w:\s]+?)\s+(?P<name>\w+)\s*\[\s*\]\s*;"
)
# __global__ void [__launch_bounds__(n[, m])] [__cluster_dims__(…)] name(
KERNEL = re.compile(
    r"__global__\s+(?P<before>(?:[^(){};]|__launch_bounds__\s*\([^)]*\)|__cluster_dims__\s*\([^)]*\))*?)\b"
    r"(?!__launch_bounds__|__cluster_dims__)(?P<name>[A-Za-z_]\w*)\s*\("
)
BOUNDS = re.compile(r"__launch_bounds__\s*\(\s*([^,)]+)")


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)


def kernels(source):
    """(name, launch bound) of every kernel that the source defines."""
    found = {}
    for match in KERNEL.finditer(without_comments(source)):
        bounds = BOUNDS.search(match["before"])
        found[match["name"]] = bounds[1].strip() if bounds else found.get(match["name"], "1024")
    return list(found.items())


def translate(source, name):
    """The C++ text for a source of CUDA C."""
    table = "".join(f"EMULATE_KERNEL({kernel}, ({bounds}))\n" for kernel, bounds in kernels(source))
    if not table:
        raise RuntimeError(f"{name} holds no __global__ function")
    body = DYNAMIC.sub(r"\g<type> *const \g<name> = reinterpret_cast<\g<type> *>(emulate_dynamic_shared);", source)
    return f'#line 1 "{name}"\n{body}\n#line 1 "table of kernels"\nEMULATE_KERNELS({table})\n'


def runtime():
    """The folder of libemulate.so, built if need be."""
    folder = pathlib.Path(os.environ.get("BEIT2_EMULATE_BUILD", HERE.parents[2] / "target/cuda-emulate"))
    library = folder / "libemulate.so"
    sources = [HERE / "scheduler.cpp", HERE / "collectives.cpp"]
    newest = max(path.stat().st_mtime for path in [*sources, *HERE.glob("*.h")])
    if not library.exists() or library.stat().st_mtime < newest:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = pathlib.Path(scratch, library.name)
            flags = "-std=c++17 -O3 -march=native -fPIC -shared -Wall -Wextra -fno-exceptions -fno-rtti".split()
            subprocess.run(["g++", *flags, *map(str, sources), "-o", str(built), "-lpthread"], check=True)
            built.replace(library)
    return folder


def compile_source(source, output, name="kernel.cu", include=(), optimize="1", define=()):
    """Compiles the text `source` into `output`; raises with g++'s message when it refuses."""
    folder = runtime()
    with tempfile.TemporaryDirectory() as scratch:
        text = pathlib.Path(scratch, "kernel.cpp")
        text.write_text(translate(source, name))
        built = pathlib.Path(f"{output}.{os.getpid()}")
        command = ["g++", *FLAGS, f"-O{optimize}", "-include", str(HERE / "emulate.h"), f"-I{HERE}"]
        if "struct info_st" in source:
            # CubeCL's fused kernels read entries of their table that are not there, into values that nobody uses.
            command.append("-fno-sanitize=bounds")
        command += [f"-I{folder}" for folder in include] + [f"-D{word}" for word in define]
        command += [str(text), "-o", str(built), f"-L{folder}", "-lemulate", f"-Wl,-rpath,{folder}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"g++ refuses {name}:\n{done.stderr}")
        built.replace(output)
    return pathlib.Path(output)


def main():
    parser = argparse.ArgumentParser(description="Compiles CUDA C by g++ into a shared object that runs on the CPU.")
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    parser.add_argument("--include", action="append", default=[], help="a folder with headers that the source includes")
    parser.add_argument("--name", help="of the source, in messages")
    parser.add_argument("--optimize", default="1", help="g++'s level (default 1: compiles fast)")
    parser.add_argument("-D", dest="define", action="append", default=[], help="a macro")
    arguments = parser.parse_args()
    include = [arguments.source.resolve().parent, DEVICE_HEADER.parent, *arguments.include]
    try:
        source, name = arguments.source.read_text(), arguments.name or str(arguments.source)
        compile_source(source, arguments.output, name, include, arguments.optimize, arguments.define)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
