"""Runs the commands of the first hour in this folder and prints the page: python first_hour.py MINUTES

Output is shortened where `…` stands: of the lines about progress the first and the last of each stage are kept.
"""
import datetime
import os
import re
import subprocess
import sys
import time
from pathlib import Path

WIDTH = 80
PROGRESS = re.compile(r"^(step |epoch |saved |evaluation |images compared|features|training|validation|  *\d+ %)")

PAGE = """# The first hour

This page is made by `scripts/first_hour.sh`: it runs the commands below and writes down what they print. The folder `photos` holds 300 images in
six sub-folders, one for each class, and `cat.jpg` is another animal. They are no photographs, because none could be part of this repository: they are bundled drawings on backgrounds of
light and grain, stored as a camera stores them (640 × 480 JPEG, EXIF orientation, some near-copies), so the accuracies below say little about yours.

Made on {date} on {machine}{load}. All commands together took {total}, after the installation.

## 1. Install

    cargo install --locked --profile dist --path crates/beit2-cli

This builds the program and puts it where your shell finds it. Here the program was built before.

"""


def run(command, shown=None):
    """Runs a command -> its output as people see it, and the seconds."""
    assert len(command) <= WIDTH, command
    started = time.monotonic()
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        sys.exit(f"{command} failed:\n{done.stdout}")
    print(f"{command}: {seconds:.0f} s", file=sys.stderr)
    return shorten(done.stdout.splitlines()), seconds


def shorten(lines):
    """Keeps two lines at each end of a row of lines about progress."""
    kept, row = [], []
    for line in lines + [""]:
        if PROGRESS.match(line):
            row.append(line)
            continue
        kept += row if len(row) <= 5 else row[:2] + ["…"] + row[-2:]
        row = []
        kept.append(line)
    here = os.getcwd()
    return [line.replace(here + "/", "").rstrip() for line in kept]


def block(lines):
    while lines and not lines[-1].strip():
        lines.pop()
    return "\n".join(("    " + line).rstrip() for line in lines) + "\n"


def duration(seconds):
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} minutes"


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "a CPU")
    return f"{len(os.sched_getaffinity(0))} cores of {cpu}"


def main():
    minutes = sys.argv[1]
    load = os.getloadavg()[0]
    busy = f", beside other work (load average {load:.1f})" if load > 1 else ""
    steps = [
        ("2. Plan", f"beit2 init --data photos --goal finetune --minutes {minutes}",
         "The folder `photos-beit2` now has a recipe for each stage ([project](formats/project.md)), with the reason for each choice "
         "beside it. Read them, or go on."),
        ("3. Train", "beit2 run photos-beit2",
         "If it is interrupted, the same command continues. The reports of all stages are HTML files: open "
         "`photos-beit2/runs/pretrain/report.html` and `photos-beit2/runs/finetune/report.html`."),
        ("4. Use it", "beit2 predict cat.jpg --weights photos-beit2/runs/finetune/best",
         "For features instead of classes, use `beit2 embed`; to go further, read the [guide](guide.md)."),
    ]
    body, total = "", 0.0
    for title, command, after in steps:
        output, seconds = run(command)
        total += seconds
        body += f"## {title}\n\n    {command}\n\nIt took {duration(seconds)} and printed\n\n{block(output)}\n{after}\n\n"
    date = datetime.date.today().isoformat()
    page = PAGE.format(date=date, machine=machine(), load=busy, total=duration(total))
    print((page + body).rstrip())


if __name__ == "__main__":
    main()
