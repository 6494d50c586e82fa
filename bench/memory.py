#!/usr/bin/env python3
"""The table of docs/benchmarks/memory.md: memory and time of training steps with micro-batches and activation checkpointing.

usage: bench/memory.py OUT.jsonl [CELL...]        CELL: stage:size:batch:parts:checkpointing:precision

Each cell is a process of its own, because what is told is the most memory that a process ever had. Time is the processor time of
the whole process, over its steps: other work on the machine changes it little. It includes two short measurements of the
machine. Cells that are in OUT.jsonl are kept. Prints the table of what is there. BEIT2 names the program
(default: target/release/beit2). Some ten minutes on two cores, and 10 GiB.
"""

import json
import os
import resource
import subprocess
import sys

CELLS = [f"pretrain:base:8:{way}:f32" for way in ("1:none", "1:blocks", "4:none", "4:blocks")]
CELLS += [f"pretrain:large:4:{way}:f32" for way in ("1:none", "1:blocks", "4:none", "4:blocks")]


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(cell):
    stage, size, batch, parts, checkpointing, precision = cell.split(":")
    command = [os.environ.get("BEIT2", "target/release/beit2"), "bench", "train", "--stage", stage, "--size", size]
    command += ["--batch-size", batch, "--grad-accum-steps", parts, "--activation-checkpointing", checkpointing]
    command += ["--precision", precision, "--rounds", "1", "--steps", "1", "--quiet", "--json"]
    before = processor_seconds()
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return {"cell": cell, "processor_seconds": processor_seconds() - before, **json.loads(out)}


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    path = sys.argv[1]
    lines = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
    for cell in sys.argv[2:] or CELLS:
        if all(line["cell"] != cell for line in lines):
            lines.append(measure(cell))
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print("| stage, size, precision | images of a step | micro-batches | blocks | memory, MiB | relative | processor seconds a step | relative |")
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    first = {}
    for line in lines:
        # Two steps to warm up and a measured one; and twice the parts of a step, of which only one micro-batch is computed.
        steps = 3 + 2 / line["grad_accum_steps"]
        memory, seconds = line["peak_step_memory_mib"], line["processor_seconds"] / steps
        what = (line["stage"], line["size"], line["precision"])
        base = first.setdefault((what, line["batch_size"]), (memory, seconds))
        again = {"none": "kept", "blocks": "computed again"}[line["activation_checkpointing"]]
        print(
            f"| {', '.join(what)} | {line['batch_size']} | {line['grad_accum_steps']} | {again} | {memory:.0f} "
            f"| {memory / base[0]:.2f} | {seconds:.1f} | {seconds / base[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
