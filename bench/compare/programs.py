"""Programs that `compare.py` measures, and what the machine says about them while they run."""

from __future__ import annotations

import json
import os
import platform
import queue
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

# More of the machine than this at work for others during a round: a warning, and the cell should be measured again.
MUCH_LOAD = 0.05


class ProgramFailed(Exception):
    """A program that ended or fell silent; its text is one sentence."""


# ----------------------------------------------------------------------------------------------------- the machine


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def cpu_ticks() -> int:
    """Ticks that all processors have worked since the start, for anyone, a hypervisor's theft included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return user + nice + system + irq + softirq + steal


def process_ticks(pid: int) -> int:
    """Ticks that all threads of a process have worked."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until_quiet(patience: float) -> None:
    """Returns after a second in which the machine was idle, or after `patience` seconds; at once where that is 0."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = cpu_ticks()
        time.sleep(1)
        if (cpu_ticks() - before) / os.sysconf("SC_CLK_TCK") / os.cpu_count() < MUCH_LOAD:
            return


def nvidia_smi(query: str) -> list[list[str]]:
    """Rows of `nvidia-smi --query-…`; none where it is missing or fails."""
    try:
        said = subprocess.run(
            ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in said.stdout.splitlines() if line.strip()]


def gpu_name() -> str | None:
    """Name, memory and driver of the first GPU."""
    for name, memory, driver, *_ in nvidia_smi("gpu=name,memory.total,driver_version"):
        return f"{name}, {memory} MiB, driver {driver}"
    return None


def gpu_memory_mib() -> float | None:
    """Memory in use on all GPUs, whoever uses it."""
    cells = [row[0] for row in nvidia_smi("gpu=memory.used")]
    return sum(map(float, cells)) if cells and all(cell.isdigit() for cell in cells) else None


def gpu_process_mib(pid: int) -> float | None:
    """GPU memory of one process with its context and kernels; `None` where the driver does not tell processes apart."""
    held = [row[1] for row in nvidia_smi("compute-apps=pid,used_gpu_memory") if row[0] == str(pid)]
    return sum(map(float, held)) if held and all(cell.isdigit() for cell in held) else None


# -------------------------------------------------------------------------------------------------------- programs


class Program:
    """A program that measures one round for each line it is sent."""

    def __init__(
        self,
        name: str,
        command: list[str],
        threads: int,
        patience: float,
        device: str = "cpu",
        cwd: str | None = None,
        environment: dict[str, str] | None = None,
    ):
        self.name, self.patience, self.device = name, patience, device
        count = str(threads)
        threads_each = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count}
        self.gpu_before = gpu_memory_mib() if device == "cuda" else None
        self.started = time.monotonic()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the program)
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
                env=os.environ | threads_each | (environment or {}), cwd=cwd,
            )  # fmt: skip
        except OSError as error:
            raise ProgramFailed(f"{name} cannot be started: {command[0]}: {error.strerror}") from None
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.facts: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the end

    def _answer(self) -> dict[str, Any]:
        """The next JSON line."""
        try:
            line = self.lines.get(timeout=max(0.0, self.patience))
        except queue.Empty:
            raise ProgramFailed(f"{self.name} has said nothing for {self.patience:.0f} s") from None
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = [text.strip() for text in self.errors if text.strip()] or ["it left no message"]
            raise ProgramFailed(f"{self.name} ended with status {self.process.returncode}: {said[-1]}")
        try:
            return json.loads(line)
        except ValueError:
            raise ProgramFailed(f"{self.name} printed no JSON: {line.strip()[:200]}") from None

    def wait_ready(self) -> None:
        self.facts = self._answer()
        if self.facts.pop("ready", None) is not True:
            raise ProgramFailed(f"{self.name} did not begin with a ready line")
        self.facts["ready_seconds"] = round(time.monotonic() - self.started, 1)

    def round(self) -> None:
        everyone, own = cpu_ticks(), process_ticks(self.process.pid)
        started = time.monotonic()
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer says why
        measured = self._answer()
        elapsed = time.monotonic() - started
        own = process_ticks(self.process.pid) - own
        others = max(0, cpu_ticks() - everyone - own) / os.sysconf("SC_CLK_TCK")
        measured["other_load"] = round(others / elapsed / os.cpu_count(), 3)
        if self.device == "cuda":
            measured["gpu_memory_mib"] = self.gpu_memory()
        self.rounds.append(measured)

    def gpu_memory(self) -> float | None:
        """What the driver counts for this process; where it does not tell, what was added since the start, which is the
        same for a program that has the GPU to itself."""
        own = gpu_process_mib(self.process.pid)
        if own is not None or self.gpu_before is None:
            return own
        now = gpu_memory_mib()
        return None if now is None else max(0.0, now - self.gpu_before)

    def stop(self) -> None:
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.errors.close()
