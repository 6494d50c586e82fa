"""Models as Python objects: pickles, threads, arrays of other libraries, progress, what they say of themselves."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import beit2
from conftest import World


def open_all(world: World) -> list[Any]:
    return [
        beit2.Embedder.open(world.path("classifier"), layer=1),
        beit2.Classifier.open(world.path("classifier"), names=["a", "b", "c"]),
        beit2.Tokenizer.open(world.path("tokenizer")),
        beit2.Segmenter.open(world.path("segmenter"), flip=True),
    ]


def equal(one: Any, other: Any) -> bool:
    return bool(one == other) if isinstance(one, list) else np.array_equal(one, other)


def test_pickle(world: World) -> None:
    image = world.images()[0]
    for model in open_all(world):
        copy = pickle.loads(pickle.dumps(model))
        assert type(copy) is type(model)
        assert repr(copy) == repr(model)
        assert equal(copy(image), model(image))


def flipped(file: Path) -> bytes:
    """Other weights of the same size."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    return bytes(data)


def in_place(file: Path) -> None:
    """Also with its old time, as `rsync --times --inplace` writes it."""
    facts = file.stat()
    file.write_bytes(flipped(file))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def replaced(file: Path) -> None:
    new = file.with_name("new")
    new.write_bytes(flipped(file))
    new.replace(file)


def linked(file: Path) -> None:
    target = file.parent.parent / "other"
    target.write_bytes(flipped(file))
    file.unlink()
    file.symlink_to(target)


@pytest.mark.parametrize("change", [in_place, replaced, linked])
def test_pickle_of_weights_that_changed(world: World, tmp_path: Path, change: Callable[[Path], None]) -> None:
    shutil.copytree(world.path("classifier"), tmp_path / "run", symlinks=True)
    file = (tmp_path / "run" / "last" / "model.safetensors").resolve()
    for path in (file, tmp_path / "run"):
        embedder = beit2.Embedder.open(path)
        expected = embedder(world.images()[0])
        content = pickle.dumps(embedder)
        np.testing.assert_array_equal(pickle.loads(content)(world.images()[0]), expected)
        change(file)
        for _ in range(2):
            with pytest.raises(beit2.Error, match="not those of when the model was opened, so a pickle would be another"):
                pickle.dumps(embedder)
        with pytest.raises(beit2.Error, match="not those of the model that was pickled; open it again"):
            pickle.loads(content)
        np.testing.assert_array_equal(embedder(world.images()[0]), expected)


def test_pickle_of_weights_that_went_or_were_only_touched(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.path("classifier"), tmp_path / "run", symlinks=True)
    file = (tmp_path / "run" / "last" / "model.safetensors").resolve()
    embedder = beit2.Embedder.open(file)
    expected = embedder(world.images()[0])
    file.write_bytes(file.read_bytes())
    content = pickle.dumps(embedder)
    np.testing.assert_array_equal(pickle.loads(content)(world.images()[0]), expected)
    file.unlink()
    for refused in (lambda: pickle.dumps(embedder), lambda: pickle.loads(content)):
        with pytest.raises(beit2.Error, match="model.safetensors"):
            refused()


def test_pickle_of_a_run_that_goes_on(world: World, tmp_path: Path) -> None:
    """The path of a run means its last checkpoint, and how the run decodes images."""
    shutil.copytree(world.path("classifier"), tmp_path / "run", symlinks=True)
    embedder = beit2.Embedder.open(tmp_path / "run")
    recipe = (tmp_path / "run" / "run.toml").read_text()
    assert "[data]" in recipe
    settings = [line for line in recipe.splitlines() if not line.startswith("background")]
    text = "\n".join(settings).replace("[data]", '[data]\nbackground = "white"')
    (tmp_path / "run" / "run.toml").write_text(text)
    with pytest.raises(beit2.Error, match="not those of when the model was opened"):
        pickle.dumps(embedder)


def test_other_processes(world: World) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    expected = embedder(world.images()[:2])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(embedder, (world.images()[:2],)), expected)


def test_a_fork_says_what_is_wrong(world: World) -> None:
    code = f"""
import os, beit2
embedder = beit2.Embedder.open({world.path("classifier")!r})
embedder({world.images()[0]!r})
if os.fork() == 0:
    try:
        embedder({world.images()[0]!r})
    except beit2.Error as error:
        print("said:", error, flush=True)
    os._exit(0)
os.wait()
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith("said: this process was forked"), ended


def test_threads(world: World) -> None:
    for model in open_all(world):
        expected = [model(image) for image in world.images()]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(model, world.images() * 4))
        assert all(equal(one, other) for one, other in zip(found, expected * 4))


def test_the_gil_is_released(world: World) -> None:
    """A Python function runs in another thread while a batch is computed."""
    embedder = beit2.Embedder.open(world.path("classifier"))
    images = [beit2.decode(world.images()[0])] * 3000
    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(embedder, images)
        count = 0
        while not result.done():
            count += 1
    assert count > 1000
    assert result.result().shape == (3000, 16)


def test_progress(world: World, told: tuple[list[tuple[int, int]], Callable[[int, int], None]]) -> None:
    calls, progress = told
    embedder = beit2.Embedder.open(world.path("classifier"))
    embedder(world.images()[:5], batch_size=2, progress=progress)
    assert calls == [(2, 5), (4, 5), (5, 5)]

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        embedder(world.images(), batch_size=2, progress=stop)


def test_results_are_arrays_of_their_own(world: World) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    found = embedder(world.images()[:2])
    assert found.flags.writeable
    found[:] = 0
    assert embedder(world.images()[:2]).any()
    np.testing.assert_array_equal(np.from_dlpack(found), found)


def test_torch_tensors(world: World) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; install it into target/python-test")
    embedder = beit2.Embedder.open(world.path("classifier"))
    image = beit2.decode(world.images()[0])
    np.testing.assert_array_equal(embedder(torch.from_numpy(image)), embedder(image))
    views = embedder.preprocess(world.images()[:2])
    floats = torch.from_numpy(views).permute(0, 3, 1, 2) / 255
    expected = embedder(floats.contiguous().numpy())
    np.testing.assert_array_equal(embedder(floats), expected)
    np.testing.assert_array_equal(embedder(floats.requires_grad_()), expected)
    assert torch.from_dlpack(expected).shape == (2, 16)
    with pytest.raises(beit2.InputError, match="float32"):
        embedder(floats.to(torch.bfloat16))


def test_what_models_say(world: World) -> None:
    embedder, classifier, tokenizer, segmenter = open_all(world)
    assert (embedder.width, embedder.layer, embedder.image_size, embedder.patch_size) == (16, 1, 32, 8)
    assert (classifier.classes, classifier.class_names, classifier.multi_label) == (3, ["a", "b", "c"], False)
    assert beit2.Classifier.open(world.path("classifier")).class_names == ["dark", "grey", "light"]
    assert (tokenizer.codebook_size, tokenizer.grid, tokenizer.teacher_dim) == (16, 4, 384)
    assert (segmenter.classes, segmenter.class_names) == (2, ["ground", "box"])
    assert (embedder.device, embedder.precision, embedder.channels) == ("cpu", "f32", 3)


def test_batches_of_columns(world: World) -> None:
    """As engines pass them, which also make models by their class."""
    embedder, paths = beit2.Embedder(world.path("classifier"), layer=1), world.images()[:3]
    content = np.empty(3, object)
    content[:] = [Path(path).read_bytes() for path in paths]
    found: Any = embedder({"bytes": content, "path": np.array(paths), "id": np.arange(3)})
    assert set(found) == {"path", "id", "features"}
    np.testing.assert_array_equal(found["features"], embedder(paths))
    pixels = np.stack([beit2.decode(paths[0])] * 2)
    by_pixels: Any = embedder({"image": pixels}, features="cls")
    np.testing.assert_array_equal(by_pixels["features"], embedder(pixels, features="cls"))
    ids: Any = beit2.Tokenizer(world.path("tokenizer"))({"path": paths})
    assert (list(ids), ids["ids"].shape) == (["path", "ids"], (3, 4, 4))
    for batch, sentence in [({"item": content}, "name that of the images"), ({"path": paths, "features": 1}, "already")]:
        with pytest.raises(beit2.InputError, match=sentence):
            embedder(batch)
    with pytest.raises(TypeError, match="use beit2.Embedder.open"):
        beit2.Embedder()


def test_no_images(world: World) -> None:
    embedder, classifier, tokenizer, segmenter = open_all(world)
    assert embedder([]).shape == (0, 16)
    assert embedder([], features="patches").shape == (0, 16, 16)
    assert classifier([]) == []
    assert tokenizer([]).shape == (0, 4, 4)
    assert segmenter([]) == []


def test_the_program_is_there(world: World) -> None:
    assert world.beit2("--version").split() == ["beit2", beit2.__version__]
    assert subprocess.run([sys.executable, "-m", "beit2", "no"], capture_output=True).returncode == 2
    # A run remembers the command that continues it, without Python's part of it.
    assert 'command = "beit2 tokenizer train tokenizer.toml' in (world.root / "tokenizer" / "run.toml").read_text()
