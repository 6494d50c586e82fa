"""Images of a training one by one are the bytes that the program trains on."""

import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import beit2
from conftest import World
from token_cache import batches, digest

RECIPE = """stage = "pretrain"
seed = 5
[model.vit]
image_size = {size}
patch_size = 8
width = 16
depth = 2
heads = 2
[model]
intermediate_layer = 1
vocab_size = 16
[mask]
patches = {masked}
min_block = 2
[schedule]
epochs = 2
warmup_epochs = 0
batch_size = 4
"""


@pytest.fixture(scope="module", params=["one view", "two views"])
def run(request: Any, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept digests of the tokenizer's views: of its own size, or of another one than the model's."""
    two = request.param == "two views"
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "recipe.toml").write_text(RECIPE.format(size=32, masked=6))
    tokenizer = world.path("tokenizer")
    if two:
        recipe = (world.root / "tokenizer.toml").read_text().replace("image_size = 32\npatch_size = 8", "image_size = 64\npatch_size = 16")
        (folder / "tokenizer.toml").write_text(recipe)
        world.beit2("tokenizer", "train", str(folder / "tokenizer.toml"), "--data", "images", "--out", str(folder / "tokenizer"))
        tokenizer = str(folder / "tokenizer")
    told = ["--data", world.path("images"), "--tokenizer", tokenizer, "--set", f"tokenizer.cache={folder / 'ids'}"]
    world.beit2("pretrain", str(folder / "recipe.toml"), *told, "--out", str(folder / "run"))
    return folder


def test_the_programs_bytes(world: World, run: Path) -> None:
    images = beit2.TrainingImages.open(run / "run")
    assert (images.stage, images.seed, images.batch_size, len(images)) == ("pretrain", 5, 4, len(world.images()))
    for epoch in range(2):
        order = images.order(epoch)
        assert sorted(slot for _, slot in order) == list(range(len(images)))
        expected = batches(run / "ids", epoch)
        assert len(expected) == len(images) // 4
        for at, of_program in enumerate(expected):
            items = [images[key] for key in order[4 * at : 4 * at + 4]]
            views = np.stack([item.get("second", item["image"]) for item in items])
            assert digest(views) == of_program
            assert all(item["image"].shape == (32, 32, 3) for item in items)
            assert all(item["mask"].shape == (4, 4) and item["mask"].sum() == 6 for item in items)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_items_are_the_same_everywhere(run: Path) -> None:
    images = beit2.TrainingImages.open(run / "run", epoch=1)
    expected = [images[at] for at in range(len(images))]
    copy = pickle.loads(pickle.dumps(images))
    assert all(same(copy[at], expected[at]) for at in reversed(range(len(images))))
    assert same(images[-1], expected[-1])
    assert same(images[(1, 3)], expected[3])
    assert not same(images[(0, 3)], expected[3])
    for kind in ("spawn", "fork"):
        with multiprocessing.get_context(kind).Pool(2) as pool:
            found = pool.map(images.__getitem__, images.order())
        assert all(same(item, expected[slot]) for item, (_, slot) in zip(found, images.order()))
    other = beit2.TrainingImages.open(run / "run", epoch=1, seed=6)
    assert not same(other[3], expected[3])


def test_other_stages(world: World) -> None:
    images = beit2.TrainingImages.open(world.path("classifier"), world.path("classes"))
    assert (images.stage, images.classes) == ("finetune", ["dark", "grey", "light"])
    labels = [images[at]["label"] for at in range(len(images))]
    assert labels == [0] * 4 + [1] * 4 + [2] * 4
    assert [Path(images.name(at)).parent.name for at in range(12)] == [images.classes[label] for label in labels]
    assert set(images[0]) == {"image", "index", "label"}
    tokenizer = beit2.TrainingImages.open(world.path("tokenizer"), world.path("images"))
    assert (tokenizer.stage, set(tokenizer[0])) == ("tokenizer", {"image", "index"})


def test_a_recipe(world: World) -> None:
    images = beit2.TrainingImages.open("mim_base_300e", world.path("images"), seed=3, set={"augment.color_jitter": 0.0})
    item = images[2]
    assert (item["image"].shape, item["mask"].sum(), images.seed) == ((224, 224, 3), 75, 3)
    assert "color_jitter = 0.0" in images.settings


def test_what_is_wrong_is_said(world: World, tmp_path: Path) -> None:
    folder = world.path("images")
    cases: list[tuple[str, str | None, dict[str, Any], str]] = [
        (world.path("segmenter"), None, {}, "pretrain, tokenizer and finetune"),
        ("no_such_recipe", None, {}, "no recipe is called"),
        ("mim_base_300e", None, {}, "names no images"),
        ("mim_base_300e", "nowhere", {}, "nowhere"),
        ("mim_base_300e", folder, {"seed": -1}, "seed"),
        ("mim_base_300e", folder, {"set": {"sede": 1}}, "sede"),
        ("mim_base_300e", folder, {"set": {"seed": 1}, "seed": 1}, "given twice"),
        ("mim_base_300e", folder, {"epoch": "a"}, "epoch"),
    ]
    for recipe, data, more, sentence in cases:
        with pytest.raises(beit2.Error, match=sentence):
            beit2.TrainingImages.open(recipe, data, **more)
    images = beit2.TrainingImages.open("mim_base_300e", world.path("images"))
    for key in (len(images), -len(images) - 1, "a", 1.0, (0,), (0, 1, 2), None):
        with pytest.raises((beit2.InputError, IndexError)):
            images[key]  # type: ignore[index]


def test_unusable_images_and_changed_folders(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.path("images"), tmp_path / "images")
    bad = sorted((tmp_path / "images").iterdir())[3]
    images = beit2.TrainingImages.open("mim_base_300e", tmp_path / "images")
    content = pickle.dumps(images)
    bad.write_bytes(b"\xff\xd8 no image")
    with pytest.warns(beit2.ImageWarning, match="another image took its place"):
        assert images[3]["index"] != 3
    pickle.loads(content)
    bad.unlink()
    with pytest.raises(beit2.Error, match="not those of when this was pickled"):
        pickle.loads(content)
