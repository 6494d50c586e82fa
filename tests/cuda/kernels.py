#!/usr/bin/env python3
"""Compiles CUDA C by the real NVRTC for several generations of cards and assembles it by ptxas: what a card's driver would do.

    tests/cuda/kernels.sh                          the program's own kernels
    tests/cuda/kernels.sh FOLDER                   the sources that a run left in FOLDER (STUB_DIR/src), for the card of that run
      --arch sm_90a …                              for these alone (default without FOLDER: sm_80 sm_86 sm_89 sm_90a)
      --spill BYTES                                how much a thread may spill (default 64; for FOLDER: nothing is demanded)
      --json FILE                                  the table for programs

Prints a line for each kernel: the most registers, shared memory, stack and spills over the architectures. The status is 1
when NVRTC or ptxas refuses a source or a kernel spills more than allowed.
"""
import argparse
import concurrent.futures
import ctypes
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
OWN = REPOSITORY / "crates/beit2-kernels/src/gpu/cuda/kernels"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a")
INCLUDE = re.compile(r'^[ \t]*#include "([\w.]+)"[ \t]*$', re.M)


class Refused(Exception):
    """A compiler's message."""


def own_text(path):
    """A kernel file as the program hands it to NVRTC: its headers in place of their `#include`, `device.cuh` first."""
    included = []

    def insert(match):
        if match[1] in included:
            return ""
        included.append(match[1])
        return INCLUDE.sub(insert, (OWN / match[1]).read_text())

    text = path.read_text()
    if "device.cuh" not in text:
        text = '#include "device.cuh"\n' + text
    return INCLUDE.sub(insert, text)


class Nvrtc:
    """The real library."""

    def __init__(self, toolkit):
        self.toolkit = toolkit
        self.library = ctypes.CDLL(str(toolkit / "lib/libnvrtc.so.13"))

    def ptx(self, source, name, arch, recorded):
        """The PTX of a source, compiled as the program (or CubeCL, for a recorded one) does. Raises Refused."""
        options = [f"--gpu-architecture={arch}", "-lineinfo"]
        if recorded:
            options += [f"--include-path={self.toolkit}/include", f"--include-path={self.toolkit}/include/cccl"]
        else:
            options += ["--std=c++17"]
        program = ctypes.c_void_p()
        self.library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        status = self.library.nvrtcCompileProgram(program, len(options), array)
        out = self._text(program, "PTX" if status == 0 else "ProgramLog")
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        if status:
            errors = [line for line in out.splitlines() if "error" in line]
            raise Refused("\n".join([f"NVRTC refuses {name} for {arch}:", *errors[:3]]))
        return out

    def _text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value + 1)
        getattr(self.library, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode(errors="replace")


def assemble(toolkit, ptx, name, arch):
    """What ptxas says of each kernel: {kernel: {registers, shared, stack, spill}}. Raises Refused."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "kernel.ptx")
        file.write_text(ptx)
        command = [str(toolkit / "bin/ptxas"), f"-arch={arch}", "-v", str(file), "-o", os.path.join(folder, "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"ptxas refuses {name} for {arch}:\n{done.stderr}")
    found, kernel = {}, None
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found.setdefault(match[1], {"registers": 0, "shared": 0, "stack": 0, "spill": 0})
        elif kernel is None:
            continue
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernel["stack"], kernel["spill"] = int(match[1]), max(int(match[2]), int(match[3]))
        elif match := re.search(r"Used (\d+) registers", line):
            kernel["registers"] = int(match[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                kernel["shared"] = int(shared[1])
    return found


def recorded_architectures(folder):
    """Those that a run compiled for: the sources of one generation may use what others don't have."""
    log = folder.parent / "compile.tsv"
    found = re.findall(r"--gpu-architecture=(\w+)", log.read_text()) if log.exists() else []
    return tuple(sorted(set(found))) or ARCHITECTURES


def main():
    parser = argparse.ArgumentParser(description="Compiles CUDA C by the real NVRTC and assembles it by ptxas.")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="sources that a run left, instead of the own kernels")
    parser.add_argument("--arch", nargs="+")
    parser.add_argument("--spill", type=int)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    toolkit = pathlib.Path(os.environ["CUDA_PATH"])
    nvrtc = Nvrtc(toolkit)
    recorded = arguments.folder is not None
    architectures = arguments.arch or (recorded_architectures(arguments.folder) if recorded else ARCHITECTURES)
    files = sorted((arguments.folder if recorded else OWN).glob("*.cu"))
    if not files:
        sys.exit(f"no .cu file in {arguments.folder or OWN}")
    limit = arguments.spill if arguments.spill is not None else None if recorded else 64

    def one(job):
        file, arch = job
        source = file.read_text() if recorded else own_text(file)
        try:
            return file, arch, assemble(toolkit, nvrtc.ptx(source, file.name, arch, recorded), file.name, arch), None
        except Refused as refused:
            return file, arch, {}, str(refused)

    problems, table = [], {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, arch, kernels, refused in pool.map(one, [(file, arch) for file in files for arch in architectures]):
            if refused:
                problems.append(refused)
            for kernel, figures in kernels.items():
                most = table.setdefault(f"{file.stem}.{kernel}", {})
                for name, value in figures.items():
                    most[name] = max(most.get(name, 0), value)
                if limit is not None and figures["spill"] > limit:
                    spilled = figures["spill"]
                    problems.append(f"{file.name}: {kernel} spills {spilled} bytes a thread for {arch}, allowed are {limit}")
    width = max(map(len, table), default=6)
    print(f"{'kernel':{width}}  registers  shared  stack  spill    ({', '.join(architectures)})")
    for kernel, most in table.items():
        print(f"{kernel:{width}}  {most['registers']:9}  {most['shared']:6}  {most['stack']:5}  {most['spill']:5}")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
