"""Training as an iterator, and runs as objects."""

import os
import shutil
import signal
import threading
from typing import Any

import pytest

import beit2
from conftest import World

# Steps of a run that is stopped early: so many that it cannot end before the signal comes.
LONG = 400


def start(world: World, out: str, **more: Any) -> beit2.Training:
    return beit2.train(
        "tokenizer",
        world.root / "tokenizer.toml",
        out=world.root / out,
        data=world.root / "images",
        set={"logging.log_every": 1},
        **more,
    )


def test_metrics_as_they_come(world: World) -> None:
    training = start(world, "all", steps=6)
    records = list(training)
    steps = [record["step"] for record in records if record["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert training.complete
    assert records == training.run.records
    assert beit2.Tokenizer.open(training.run.last or "")(world.images()[0]).shape == (4, 4)
    # Complete: nothing new comes.
    assert list(start(world, "all", steps=6)) == []


def test_stopped_and_continued(world: World) -> None:
    whole = [record["loss"] for record in start(world, "whole", steps=LONG) if record["kind"] == "step"]
    parts: dict[int, float] = {}
    with start(world, "parts", steps=LONG) as training:
        for record in training:
            if record["kind"] == "step":
                parts[record["step"]] = record["loss"]
            if record["step"] >= 5:
                break
    assert not training.complete
    assert training.run.last is not None
    known = len(training.run.records)
    assert known < LONG
    again = start(world, "parts", steps=LONG)
    new = [record for record in again if record["kind"] == "step"]
    assert again.complete
    assert new[0]["step"] <= known + 1
    parts.update({record["step"]: record["loss"] for record in training.run.records if record["kind"] == "step"})
    assert [parts[step] for step in sorted(parts)] == whole


def test_a_killed_run_gives_no_record_twice(world: World) -> None:
    training = start(world, "killed", steps=40)
    seen = [next(training) for _ in range(8)]
    training._process.kill()
    training._process.wait()
    # One that was being written has another name.
    names = [name for name in os.listdir(world.root / "killed" / "checkpoints") if name.startswith("step-")]
    at = max((int(name.split("-")[1]) for name in names), default=0)
    steps = [record["step"] for record in start(world, "killed", steps=40) if record["kind"] == "step"]
    assert steps == list(range(at + 1, 41)), (at, seen)


def test_ctrl_c_stops_the_run(world: World) -> None:
    training = start(world, "ctrl-c", steps=100_000)
    next(training)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        for _ in training:
            pass
    assert training._process.returncode == 143
    assert training.run.last is not None


def test_failures_have_the_programs_sentence(world: World) -> None:
    with pytest.raises(beit2.InputError, match="unknown|no-such|unexpected"):
        list(start(world, "never", no_such=3))
    with pytest.raises(beit2.Error, match="no/images"):
        list(beit2.train("tokenizer", world.root / "tokenizer.toml", out=world.root / "never", data="no/images"))
    wrong: list[dict[str, Any]] = [{"out": 3}, {"json": True}, {"data": {}}, {"lr": object()}, {"set": 3}, {"set": {"a": None}}]
    for arguments in wrong:
        with pytest.raises(beit2.InputError):
            beit2.train("tokenizer", "x", **arguments)
    with pytest.raises(beit2.InputError, match="stage is 'x'"):
        beit2.train("x", "y")
    assert not (world.root / "never").exists()


def test_run(world: World) -> None:
    run = beit2.Run(world.path("classifier"))
    assert 'stage = "finetune"' in run.settings
    assert run.best is not None
    report = run.report()
    assert report._repr_html_().startswith("<iframe srcdoc=")
    assert beit2.Classifier.open(run).classes == 3
    pandas = pytest.importorskip("pandas")
    assert isinstance(run.metrics, pandas.DataFrame)
    assert len(run.metrics) == len(run.records)
    with pytest.raises(beit2.InputError, match="is no run"):
        beit2.Run(world.path("images"))
    shutil.copytree(world.path("classifier"), world.path("empty"), ignore=shutil.ignore_patterns("*.jsonl", "last", "best"))
    assert beit2.Run(world.path("empty")).records == []
    assert beit2.Run(world.path("empty")).last is None
