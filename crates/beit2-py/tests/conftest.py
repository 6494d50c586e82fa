"""Small images and models that the program itself trains in seconds, once for all tests."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

TOKENIZER = """stage = "tokenizer"
[model]
image_size = 32
patch_size = 8
width = 16
depth = 2
heads = 2
decoder_width = 16
decoder_depth = 1
decoder_heads = 2
codebook_size = 16
code_dim = 4
teacher_dim = 384
[teacher]
kind = "distilled"
weights = "bundled:teacher"
[schedule]
steps = 4
warmup_steps = 1
batch_size = 8
"""
FINETUNE = """stage = "finetune"
[model.vit]
image_size = 32
patch_size = 8
width = 16
depth = 2
heads = 2
[init]
head_scale = 1.0
[schedule]
steps = 4
warmup_steps = 1
batch_size = 6
"""
SEGMENT = """stage = "segment"
[model]
out_indices = [0, 1, 2, 3]
channels = 16
aux_channels = 8
[model.vit]
image_size = 64
patch_size = 8
width = 16
depth = 4
heads = 2
[augment]
base = [72, 66]
[schedule]
steps = 4
warmup_steps = 1
batch_size = 2
[infer]
resize = false
"""


@dataclass
class World:
    """A folder with images and models, and the program."""

    root: Path

    def path(self, name: str) -> str:
        return str(self.root / name)

    def beit2(self, *args: str) -> str:
        """Runs the installed program and gives what it prints."""
        program = Path(sys.executable).with_name("beit2")
        ended = subprocess.run([program, *args], cwd=self.root, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def refused(self, *args: str) -> tuple[int, str]:
        """Runs the program where it fails: its exit code and its sentence."""
        program = Path(sys.executable).with_name("beit2")
        ended = subprocess.run([program, *args], cwd=self.root, capture_output=True, text=True)
        lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        return ended.returncode, lines[-1].removeprefix("error: ")

    def json(self, *args: str) -> Any:
        return json.loads(self.beit2(*args, "--json", "--quiet"))

    def images(self) -> list[str]:
        """Files of many kinds, sorted as the program reads their folder."""
        return sorted(str(path) for path in (self.root / "images").iterdir())


def pixels(seed: int, height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x * (c + 1) + seed * 5) / 9) + np.cos((y * (3 - c) + seed) / 7) for c in range(channels)]
    image = np.stack(waves, -1) * 50 + 128 + rng.integers(-20, 20, (height, width, channels))
    return image.clip(0, 255).astype(np.uint8)


def _write_images(folder: Path) -> None:
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(pixels(seed, 40 + 7 * seed, 61)).save(folder / f"a{seed}.jpg", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels(4, 50, 70)).save(folder / "b_turned.jpg", exif=turned)
    Image.fromarray(pixels(5, 45, 45)[..., 0]).save(folder / "c_grey.png")
    Image.fromarray(pixels(6, 45, 45, 4)).save(folder / "d_alpha.png")
    Image.fromarray(pixels(7, 45, 45)).quantize(16).save(folder / "e_palette.png")
    Image.fromarray(pixels(8, 45, 47)).convert("CMYK").save(folder / "f_cmyk.jpg")
    np.save(folder / "g_array.npy", pixels(9, 33, 64))
    Image.fromarray(pixels(10, 64, 33)).save(folder / "h.webp", lossless=True)
    Image.fromarray(pixels(11, 45, 45)[..., 0] > 120).save(folder / "i_bits.png")
    Image.fromarray(pixels(12, 40, 40)[..., 0].astype(np.uint16)).save(folder / "j_16_bits.png")


def _write_sets(root: Path) -> None:
    for kind, shade in [("dark", 40), ("grey", 128), ("light", 210)]:
        (root / "classes" / kind).mkdir(parents=True)
        for at in range(4):
            image = (pixels(at, 40, 40) // 8 + shade).astype(np.uint8)
            Image.fromarray(image).save(root / "classes" / kind / f"{at}.png")
    for part in ("images", "masks"):
        (root / "scenes" / part).mkdir(parents=True)
    (root / "scenes" / "classes.txt").write_text("ground\t#202020\nbox\t#ff8000\n")
    for at in range(4):
        image, mask = pixels(at, 66, 72) // 4, np.zeros((66, 72), np.uint8)
        image[10 : 30 + at, 8 : 40 + at] += 150
        mask[10 : 30 + at, 8 : 40 + at] = 1
        Image.fromarray(image).save(root / "scenes" / "images" / f"{at}.png")
        Image.fromarray(mask).save(root / "scenes" / "masks" / f"{at}.png")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and one model of each kind."""
    world = World(tmp_path_factory.mktemp("world"))
    _write_images(world.root / "images")
    _write_sets(world.root)
    for name, recipe in [("tokenizer", TOKENIZER), ("finetune", FINETUNE), ("segment", SEGMENT)]:
        (world.root / f"{name}.toml").write_text(recipe)
    world.beit2("tokenizer", "train", "tokenizer.toml", "--data", "images", "--out", "tokenizer")
    world.beit2(
        "finetune", "finetune.toml", "--init", "scratch", "--data", "classes", "--val", "classes", "--out", "classifier"
    )
    world.beit2(
        "segment", "train", "segment.toml", "--init", "scratch", "--data", "scenes", "--val", "scenes", "--out", "segmenter"
    )
    return world


@pytest.fixture
def told() -> tuple[list[tuple[int, int]], Callable[[int, int], None]]:
    """What a progress function was told, and the function."""
    calls: list[tuple[int, int]] = []
    return calls, lambda done, total: calls.append((done, total))
