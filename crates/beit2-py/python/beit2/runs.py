"""Runs of the program as objects, and training as an iterator of metrics."""

import atexit
import contextlib
import html
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from ._errors import Error, InputError

Record: TypeAlias = dict[str, Any]
"""One record of ``metrics.jsonl``: ``kind`` (``step`` or ``epoch``), ``stage``, ``epoch``, ``step``, and the metrics."""

_COMMANDS = {
    "tokenizer": ["tokenizer", "train"],
    "pretrain": ["pretrain"],
    "finetune": ["finetune"],
    "segment": ["segment", "train"],
    "distill": ["teacher", "distill"],
}
# Arguments of the commands that `train` sets itself.
_OWN = {"out", "set", "quiet", "json", "dry_run", "check_data", "help", "resume"}
# How often a run is looked at, in seconds.
_INTERVAL = 0.05


class Report:
    """A run's report, which shows itself in a notebook."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _repr_html_(self) -> str:
        # In a frame of its own: its styles are for a whole page.
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 640px; border: 0"></iframe>'

    def __repr__(self) -> str:
        return f"<report {self.path}>"


class Run:
    """A run directory: what was trained, its metrics, its report.

    >>> run = beit2.Run("runs/mim")
    >>> run.metrics["loss"].iloc[-1]
    5.31
    >>> embedder = beit2.Embedder.open(run.last)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"a path is wanted, not {type(path).__name__}")
        self.path = Path(os.fsdecode(path))
        if not (self.path / "run.toml").is_file():
            raise InputError(f"{self.path} is no run: it has no run.toml")

    @property
    def settings(self) -> str:
        """The resolved settings, ``run.toml``, as text."""
        return (self.path / "run.toml").read_text(encoding="utf-8")

    @property
    def records(self) -> list[Record]:
        """All records so far."""
        return [record for record, _ in _records(self.path / "metrics.jsonl", 0)]

    @property
    def metrics(self) -> Any:
        """All records so far: a pandas DataFrame with a column for each metric if pandas is installed, else :attr:`records`."""
        try:
            import pandas
        except ImportError:
            return self.records
        return pandas.DataFrame(self.records)

    @property
    def last(self) -> Path | None:
        """The newest checkpoint, which models can be opened from; ``None`` if there is none yet."""
        return _link(self.path / "last")

    @property
    def best(self) -> Path | None:
        """The best checkpoint; ``None`` if there is none."""
        return _link(self.path / "best")

    def report(self) -> Report:
        """Makes the report anew and gives it; a notebook shows it."""
        ended = subprocess.run(
            [sys.executable, "-m", "beit2", "report", str(self.path)], stdin=subprocess.DEVNULL, capture_output=True
        )
        if ended.returncode != 0:
            raise _failed(ended.returncode, ended.stderr)
        return Report(self.path / "report.html")

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"beit2.Run({str(self.path)!r})"


class Training:
    """A run that trains in a process of its own; an iterator of its new records, which :func:`train` starts.

    The iterator ends when the run is complete or was stopped (:attr:`complete` says which). Leaving a ``with`` block, Ctrl-C
    while waiting for a record, and the end of Python stop the run; it saves first.
    """

    def __init__(self, command: Sequence[str], out: Path) -> None:
        self._out = out
        self._metrics = out / "metrics.jsonl"
        at = _checkpoint_step(out)
        kept = [end for record, end in _records(self._metrics, 0) if record.get("step", 0) <= at]
        self._offset = max(kept, default=0)
        # Records after the checkpoint are cut off by the program, which writes the file anew: until then they are not this run's.
        old = _stat(self._metrics)
        self._stale = old[0] if old[1] > self._offset else None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process runs)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "beit2", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            # Ctrl-C is for Python, which stops the run.
            start_new_session=True,
        )
        self.complete = False
        """Whether the run has come to its end."""
        _TRAININGS.add(self)

    @property
    def run(self) -> Run:
        """The run directory."""
        return Run(self._out)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        try:
            while True:
                ended = self._process.poll() is not None
                record = self._next_record()
                if record is not None:
                    return record
                if ended:
                    self._settle()
                    raise StopIteration
                time.sleep(_INTERVAL)
        except KeyboardInterrupt:
            self.stop()
            raise

    def _next_record(self) -> Record | None:
        if self._stale is not None:
            if _stat(self._metrics)[0] == self._stale:
                return None
            self._stale = None
        for record, end in _records(self._metrics, self._offset):
            self._offset = end
            return record
        return None

    def _settle(self) -> None:
        """What the program's exit code says, once."""
        if self._errors.closed:
            return
        self._errors.seek(0)
        told = self._errors.read()
        self._errors.close()
        code = self._process.returncode
        self.complete = code == 0
        # 130 and 143: stopped, with everything saved.
        if code not in (0, 130, 143):
            raise _failed(code, told)

    def stop(self) -> None:
        """Stops the run after the step that it is in; everything is saved, and the same :func:`train` continues it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def __enter__(self) -> "Training":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self._process.poll() is None else "ended"
        return f"<training in {self._out}, {state}>"


_TRAININGS: "weakref.WeakSet[Training]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for training in list(_TRAININGS):
        training.stop()


def train(
    stage: str,
    recipe: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    set: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Training:
    """Trains by a recipe in a process of its own, and gives an iterator of its metrics as they are logged.

    >>> with beit2.train("pretrain", "quickstart_pretrain", tokenizer="runs/tokenizer", steps=100) as training:
    ...     for record in training:
    ...         print(record["step"], record.get("loss"))
    ...         if record.get("loss", 9.0) < 5.0:
    ...             training.stop()

    ``stage``: ``tokenizer``, ``pretrain``, ``finetune``, ``segment`` or ``distill``. ``recipe``: a built-in recipe or a file.
    ``out``: the run directory, ``runs/RECIPE`` by default. ``set``: keys of the recipe, ``{"schedule.batch_size": 64}``. All other
    arguments are the flags of the command: ``data="images"``, ``val=…``, ``lr=1e-3``, ``device="cuda"``, ``restart=True``.

    A run that is there already continues after its last checkpoint; then only new records come.

    Raises :class:`beit2.InputError` for wrong arguments, at once or at the first record, and :class:`beit2.Error` where the program
    fails; both have its sentence.
    """
    if not isinstance(stage, str) or stage not in _COMMANDS:
        raise InputError(f"stage is {stage!r}; it can be {', '.join(_COMMANDS)}")
    for what, path in [("recipe", recipe), ("out", out)]:
        if path is not None and not isinstance(path, str | os.PathLike):
            raise InputError(f"{what} is a path, not {path!r}")
    name = _text("recipe", recipe)
    folder = Path(_text("out", out)) if out is not None else Path("runs") / Path(name).stem
    command = [*_COMMANDS[stage], name, "--out", str(folder), "--quiet"]
    if set is not None and not isinstance(set, Mapping):
        raise InputError("set is a mapping of recipe keys to values")
    for key, value in (set or {}).items():
        command += ["--set", f"{_text('a key of set', key)}={_toml(key, value)}"]
    for key, value in overrides.items():
        if key in _OWN:
            raise InputError(f"train takes no {key}")
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            command.append(flag)
        elif value is not None and value is not False:
            values = value if isinstance(value, list | tuple) else [value]
            for one in values:
                command.append(f"{flag}={_text(key, one)}")
    return Training(command, folder)


def _text(what: str, value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, str | os.PathLike):
        text = os.fsdecode(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        text = repr(value)
    else:
        raise InputError(f"{what} is a text or a number, not {value!r}")
    if "\0" in text or not text:
        raise InputError(f"{what} is {text!r}, which cannot be part of a command")
    return text


def _toml(key: str, value: Any) -> str:
    """A value as a recipe has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(json.dumps(one) if isinstance(one, str) else _toml(key, one) for one in value) + "]"
    return _text(f"set[{key!r}]", value)


def _records(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """Records from a place of the file on, each with where it ends. A line that is still written is left for later."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record, offset


def _stat(path: Path) -> tuple[int, int]:
    """Which file this is, and its length; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_size


def _link(path: Path) -> Path | None:
    return path.resolve() if path.exists() else None


def _checkpoint_step(out: Path) -> int:
    """The step of the newest checkpoint; -1 if there is none."""
    try:
        return int(json.loads((out / "last" / "state.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _failed(code: int, told: bytes) -> Error:
    lines = [line for line in told.decode(errors="replace").splitlines() if line.startswith("error: ")]
    sentence = lines[-1].removeprefix("error: ") if lines else f"the process of the run ended with code {code}"
    return InputError(sentence) if code == 2 else Error(sentence)
