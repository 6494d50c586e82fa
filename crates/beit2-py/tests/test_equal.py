"""Values are those of the program, to the bit, on the same files and on their content passed in other ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import beit2
from conftest import World, pixels


def embedded(world: World, out: str, *more: str) -> Any:
    file = world.root / out
    world.beit2("embed", "images", "--weights", "classifier", "--out", str(file), "--force", "--quiet", *more)
    return np.load(file)


@pytest.mark.parametrize("features", ["mean", "cls", "concat", "patches"])
def test_features(world: World, features: Any) -> None:
    expected = embedded(world, "features.npy", "--features", features)
    found = beit2.Embedder.open(world.path("classifier"))(world.images(), features=features)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--layer", "1"], {"layer": 1}),
        (["--image-size", "48"], {"image_size": 48}),
        (["--crop-pct", "0.5"], {"crop_pct": 0.5}),
        (["--precision", "bf16"], {"precision": "bf16"}),
        (["--precision", "int8"], {"precision": "int8"}),
        (["--exif", "ignore", "--background", "white"], {"exif": "ignore", "background": "white"}),
        (["--normalization", "half"], {"normalization": "half"}),
        (["--mean", "0.1,0.2,0.3", "--std", "0.5,0.6,0.7"], {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}),
        (["--range", "percentile"], {"range": "percentile"}),
    ],
)
def test_options(world: World, flags: list[str], options: dict[str, Any]) -> None:
    expected = embedded(world, "options.npy", *flags)
    np.testing.assert_array_equal(beit2.Embedder.open(world.path("classifier"), **options)(world.images()), expected)
    assert not np.array_equal(expected, embedded(world, "plain.npy")), "the option changes something"


def test_any_batch_and_workers(world: World) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    expected = embedded(world, "five.npy", "--batch-size", "5")
    for workers in (0, 1, 4):
        np.testing.assert_array_equal(embedder(world.images(), batch_size=5, workers=workers), expected)


def test_classes(world: World) -> None:
    found = beit2.Classifier.open(world.path("classifier"))(world.images(), top=3)
    told = world.json("predict", "images", "--weights", "classifier", "--top", "3")["images"]
    assert [Path(one["path"]).name for one in told] == [Path(path).name for path in world.images()]
    for row, expected in zip(found, told):
        assert isinstance(row, list)
        for one, other in zip(row, expected["predictions"]):
            # JSON has the shortest digits that give the same f32.
            assert (one.label, one.name) == (other["class"], other["name"])
            assert np.float32(one.probability) == np.float32(other["probability"])


def test_token_ids(world: World) -> None:
    world.beit2("tokenizer", "encode", "images", "--tokenizer", "tokenizer", "--out", "ids.npy", "--quiet")
    found = beit2.Tokenizer.open(world.path("tokenizer"))(world.images())
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.load(world.root / "ids.npy"))


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--mode", "whole", "--resize", "64x64"], {"mode": "whole", "resize": (64, 64)}),
        (["--stride", "16", "--flip", "--scales", "1,1.5"], {"stride": 16, "flip": True, "scales": [1.0, 1.5]}),
    ],
)
def test_masks(world: World, flags: list[str], options: dict[str, Any], tmp_path: Path) -> None:
    out = str(tmp_path / "masks")
    world.beit2("segment", "predict", "images", "--weights", "segmenter", "--out", out, "--no-overlay", "--quiet", *flags)
    found = beit2.Segmenter.open(world.path("segmenter"), **options)(world.images())
    assert isinstance(found, list)
    masks = sorted((tmp_path / "masks" / "masks").iterdir())
    assert len(masks) == len(found)
    for path, labels in zip(masks, found):
        np.testing.assert_array_equal(labels, np.array(Image.open(path)), err_msg=path.name)


def test_every_form_of_an_image(world: World) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    for path in world.images():
        expected = embedder(path)
        assert expected.shape == (16,)
        content = Path(path).read_bytes()
        forms: list[Any] = [Path(path), content, bytearray(content), memoryview(content), beit2.decode(path)]
        if path.endswith(".npy"):
            forms.append(np.load(path))
        else:
            forms.append(Image.open(path))
        for form in forms:
            np.testing.assert_array_equal(embedder(form), expected, err_msg=f"{path} as {type(form)}")


def test_integer_arrays(world: World) -> None:
    embedder = beit2.Embedder.open(world.path("classifier"))
    batch = np.stack([pixels(seed, 40, 50) for seed in range(3)])
    expected = embedder(list(batch))
    np.testing.assert_array_equal(embedder(batch), expected)
    np.testing.assert_array_equal(embedder(np.asfortranarray(batch)), expected)
    np.testing.assert_array_equal(embedder(batch.astype(np.uint16)), expected)
    np.testing.assert_array_equal(embedder(batch[0, ::-1, ::2]), embedder(batch[0, ::-1, ::2].copy()))
    grey = batch[0, ..., 0]
    np.testing.assert_array_equal(embedder(grey), embedder(np.repeat(grey[..., None], 3, 2)))


def test_floats_are_what_the_model_sees(world: World) -> None:
    for model in (beit2.Embedder.open(world.path("classifier")), beit2.Tokenizer.open(world.path("tokenizer"))):
        views = model.preprocess(world.images())
        assert views.dtype == np.uint8
        assert views.shape == (len(world.images()), 32, 32, 3)
        floats = np.ascontiguousarray((views / np.float32(255)).transpose(0, 3, 1, 2))
        expected = model(world.images())
        np.testing.assert_allclose(model(floats), expected, rtol=0, atol=2e-6)  # 1/255 is rounded elsewhere
        np.testing.assert_allclose(model(list(floats)), expected, rtol=0, atol=2e-6)
        np.testing.assert_allclose(model(floats[0]), expected[0], rtol=0, atol=2e-6)


def test_segmenter_logits(world: World) -> None:
    segmenter = beit2.Segmenter.open(world.path("segmenter"))
    images = np.stack([pixels(seed, 64, 64) for seed in range(2)]).transpose(0, 3, 1, 2) / np.float32(255)
    logits = segmenter.logits(images)
    assert logits.shape == (2, 16, 16, 2)
    np.testing.assert_array_equal(segmenter.logits(images[1]), logits[1])


def test_decoded_tokens(world: World) -> None:
    tokenizer = beit2.Tokenizer.open(world.path("tokenizer"))
    ids = tokenizer(world.images()[:2])
    features = tokenizer.decode(ids)
    assert features.shape == (2, 16, 384)
    np.testing.assert_array_equal(tokenizer.decode(ids[0].astype(np.uint8)), features[0])
