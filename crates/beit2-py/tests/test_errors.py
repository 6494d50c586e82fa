"""Whatever is passed, the answer is a result or an exception with a sentence; never a crash."""

import contextlib
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import beit2
from conftest import World, pixels


@pytest.mark.parametrize(
    ("command", "path", "is_input"),
    [
        ("embed", "no/such/file", False),
        ("embed", "finetune.toml", False),
        ("embed", "segmenter", True),
        ("predict", "tokenizer", True),
    ],
)
def test_the_sentence_is_the_programs(world: World, command: str, path: str, is_input: bool, monkeypatch: Any) -> None:
    monkeypatch.chdir(world.root)
    out = ["--out", "never.npy"] if command == "embed" else []
    code, sentence = world.refused(command, "images", "--weights", path, "--quiet", *out)
    kind = beit2.Embedder if command == "embed" else beit2.Classifier
    with pytest.raises(beit2.Error) as caught:
        kind.open(path)
    assert str(caught.value) == sentence
    assert isinstance(caught.value, ValueError) == (code == 2) == is_input


def test_an_image_that_cannot_be_used_is_named(world: World, tmp_path: Path) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    (tmp_path / "bad.jpg").write_bytes(Path(world.images()[0]).read_bytes()[:300])
    for bad, sentence in [
        (str(tmp_path / "bad.jpg"), "bad.jpg"),
        (str(tmp_path / "missing.jpg"), "missing.jpg"),
        (str(tmp_path), str(tmp_path)),
        (b"no image", "image 1: the content is not a JPEG"),
        (b"", "image 1"),
    ]:
        with pytest.raises(beit2.Error, match=sentence.replace("\\", ".")):
            embedder([world.images()[0], bad])


FLOATS = np.zeros((2, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (None, "NoneType is no image"),
        (7, "int is no image"),
        ({"a": 1}, "the batch has the columns"),
        (FLOATS[:, :, :16], r"the shape \[B, 3, 32, 32\] for this model, not \[2, 3, 16, 32\]"),
        (FLOATS.transpose(0, 2, 3, 1), r"not \[2, 32, 32, 3\]"),
        (FLOATS + 2, "these lie in"),
        (FLOATS - np.inf, "these lie in"),
        (FLOATS * np.nan, "these lie in"),
        (FLOATS.astype(np.float64), "convert it with"),
        (FLOATS[0, 0], r"the shape \[C, H, W\]"),
        ([FLOATS[0], "a.jpg"], "mixes"),
        ([FLOATS[0], FLOATS[0, :, 1:]], "one size"),
        (np.zeros((4, 4, 5), np.uint8), "5 channels|expected"),
        (np.zeros((0, 4, 3), np.uint8), "no image"),
        (np.zeros((3, 4, 3), np.uint8), "H, W, C"),
        (np.zeros((4, 4, 3), bool), "bool is no image"),
        (np.zeros((4, 4, 3), complex), "is no image"),
        (np.array(3, np.uint8), "no image"),
        ("a\0b", "zero byte"),
        ([["a.jpg"]], "list is no image"),
    ],
)
def test_wrong_images(world: World, images: Any, sentence: str) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    with pytest.raises(beit2.Error, match=sentence):
        embedder(images)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "gpu"},
        {"device": "cpu,cpu"},
        {"device": 3},
        {"precision": "f64"},
        {"layer": 99},
        {"layer": -1},
        {"layer": 1.5},
        {"image_size": 33},
        {"image_size": 1 << 40},
        {"crop_pct": 7},
        {"crop_pct": "x"},
        {"mean": [0.5, 0.5, 0.5]},
        {"mean": [0.5], "std": [0]},
        {"mean": [0.5] * 3, "std": [0.5] * 3, "normalization": "half"},
        {"normalization": "x"},
        {"entry": "no such"},
        {"teacher": "x"},
        {"range": "wide"},
        {"exif": "maybe"},
        {"background": "pink"},
    ],
)
def test_wrong_options(world: World, options: dict[str, Any]) -> None:
    with pytest.raises(beit2.Error):
        beit2.Embedder.open(world.path("classifier"), **options)


def test_wrong_calls(world: World) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    image = world.images()[0]
    wrong: list[dict[str, Any]] = [
        {"features": "sum"},
        {"batch_size": 0},
        {"batch_size": 2.0},
        {"workers": -1},
        {"workers": "two"},
        {"progress": 3},
    ]
    for arguments in wrong:
        with pytest.raises(beit2.InputError):
            embedder(image, **arguments)
    classifier: Any = beit2.Classifier.open(world.path("classifier"))
    for name, value in [("top", 0), ("threshold", 0.5)]:
        with pytest.raises(beit2.InputError):
            classifier(image, **{name: value})
    with pytest.raises(beit2.InputError, match="2 names were given"):
        beit2.Classifier.open(world.path("classifier"), names=["a", "b"])
    tokenizer = beit2.Tokenizer.open(world.path("tokenizer"))
    for ids in (np.full((4, 4), 16), np.full((4, 4), -1), np.zeros((3, 4), int), np.zeros((4, 4)), "ids", [[1], [2, 3]]):
        with pytest.raises(beit2.InputError):
            tokenizer.decode(ids)
    with pytest.raises(TypeError, match="use beit2.Embedder.open"):
        beit2.Embedder()


def anything(random_: random.Random, depth: int = 0) -> Any:
    """A value of a random type, often nearly an image."""
    numbers = np.random.default_rng(random_.randrange(1 << 30))
    shape = tuple(random_.choice([0, 1, 2, 3, 4, 7, 32]) for _ in range(random_.randrange(6)))
    dtypes = ["u1", "u2", "<f4", ">f4", "f8", "f2", "i1", "i4", ">u2", "i8", "u8", "?", "c8", "O", "U3", "M8[s]", "V4"]
    match random_.randrange(11 if depth < 2 else 9):
        case 0:
            return random_.choice([None, True, -1, 3.5, 1 << 80, "x", "", "\ud800", b"", object(), object, len, ..., 2j])
        case 1 | 2 | 3:
            values = numbers.integers(0, 256, shape)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = values.astype(random_.choice(dtypes))
            return array.T if random_.random() < 0.3 else array
        case 4:
            array = numbers.random((*shape[:2], 3, 32, 32)).astype(np.float32)
            return array * random_.choice([1, 1, 1, 300, np.nan])
        case 5:
            modes = "1 L P RGB RGBA CMYK YCbCr LAB HSV I F LA La RGBX I;16".split()
            return Image.new(random_.choice(modes), (random_.choice([0, 1, 40]), random_.choice([1, 3, 50])))
        case 6:
            return numbers.bytes(random_.randrange(50))
        case 7:
            return memoryview(pixels(1, 5, 5).tobytes()) if random_.random() < 0.5 else bytearray(numbers.bytes(9))
        case 8:
            return random_.choice([{}, set(), {1: 2}, range(3), iter([]), np.float32(1), np.ma.masked, slice(1)])
        case _:
            parts = [anything(random_, depth + 1) for _ in range(random_.randrange(4))]
            return tuple(parts) if random_.random() < 0.3 else parts


def test_random_types_and_shapes(world: World) -> None:
    models: list[Any] = [
        beit2.Embedder.open(world.path("classifier")),
        beit2.Classifier.open(world.path("classifier")),
        beit2.Tokenizer.open(world.path("tokenizer")),
        beit2.Segmenter.open(world.path("segmenter")),
    ]
    functions = [*models, models[0].preprocess, models[2].decode, models[3].logits, beit2.decode]
    done = 0
    for seed in range(3000):
        value = anything(random.Random(seed))
        try:
            functions[seed % len(functions)](value)
            done += 1
        except beit2.Error as error:
            assert str(error) and "\n" not in str(error), (seed, error)
            assert "this is a bug" not in str(error), (seed, error)
    assert done > 100, "some are images"


def test_random_options(world: World) -> None:
    names = ["device", "precision", "layer", "image_size", "crop_pct", "entry", "heads", "normalization", "mean", "std"]
    names += ["teacher", "teacher_heads", "teacher_activation", "range", "exif", "background"]
    values: list[Any] = [None, 0, 1, -1, 2.5, "", "x", "cpu", "0,1", [1.0], [0.5] * 3, (), {}, b"x", "\ud800", 1 << 70, True]
    values.append(float("nan"))
    for seed in range(400):
        chance = random.Random(seed)
        options: dict[str, Any] = {chance.choice(names): chance.choice(values) for _ in range(2)}
        try:
            beit2.Embedder.open(world.path("classifier"), **options)
        except beit2.Error as error:
            assert str(error) and "this is a bug" not in str(error), (options, error)


def test_damaged_images(world: World) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    for seed in range(300):
        chance = random.Random(seed)
        content = bytearray(Path(chance.choice(world.images())).read_bytes())
        for _ in range(chance.randrange(1, 20)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        with contextlib.suppress(beit2.Error):
            assert embedder(bytes(content[: chance.randrange(len(content))])).shape == (16,)
