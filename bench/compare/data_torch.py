"""The transforms of data.py in Pillow, torchvision and timm: one function per cell, from encoded bytes to pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import timm.data
import torch
import torchvision.transforms as v1
import torchvision.transforms.functional as functional
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = (0.2, 1.0)  # of BEiT v2's commands
BICUBIC = v1.InterpolationMode.BICUBIC


def versions() -> dict[str, str]:
    import PIL
    import torchvision

    names = {"pillow": PIL, "torch": torch, "torchvision": torchvision, "timm": timm}
    return {name: module.__version__ for name, module in names.items()}


def pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def tensor(data: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


class TwoPictures(torch.nn.Module):
    """The crop of BEiT v2's DataAugmentationForBEiT: the box is resized once for each of its two views."""

    def forward(self, image: Image.Image) -> tuple[Image.Image, Image.Image]:
        box = v1.RandomResizedCrop.get_params(image, list(SCALE), [3 / 4, 4 / 3])
        views = [functional.resized_crop(image, *box, [224, 224], BICUBIC) for _ in range(2)]
        return views[0], views[1]


def cells() -> dict[str, dict[str, Callable[[bytes], Any]]]:
    """Cell -> program -> what it does with an image."""

    def lean(jitter: bool) -> Callable[[bytes], Any]:
        steps = [v1.ColorJitter(0.4, 0.4, 0.4)] if jitter else []
        steps += [v1.RandomHorizontalFlip(), v1.RandomResizedCrop(224, scale=SCALE, interpolation=BICUBIC)]
        transform = v1.Compose(steps)
        return lambda data: np.asarray(transform(pillow(data)))

    def tensors(jitter: bool) -> Callable[[bytes], Any]:
        steps = [v2.ColorJitter(0.4, 0.4, 0.4)] if jitter else []
        crop = v2.RandomResizedCrop(224, scale=SCALE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        transform = v2.Compose([*steps, v2.RandomHorizontalFlip(), crop])
        return lambda data: transform(tensor(data))

    def official(jitter: bool) -> Callable[[bytes], Any]:
        steps = [v1.ColorJitter(0.4, 0.4, 0.4)] if jitter else []
        common = v1.Compose([*steps, v1.RandomHorizontalFlip(), TwoPictures()])
        to_model = v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)])
        to_tokenizer = v1.ToTensor()

        def run(data: bytes) -> Any:
            first, second = common(pillow(data))
            return to_model(first), to_tokenizer(second)

        return run

    training = timm.data.create_transform(
        224, is_training=True, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
        re_prob=0.25, re_mode="pixel", re_count=1, mean=MEAN, std=STD,
    )  # fmt: skip

    def finetune(data: bytes) -> Any:
        try:
            return training(pillow(data))
        except ValueError:
            return None  # Pillow 13 refuses to posterize to 0 bits, which timm draws for one image in 700

    views = {"torchvision": lean, "torchvision-v2": tensors, "beit": official}
    return {
        "decode": {"pillow": lambda data: pillow(data).load(), "torchvision-v2": tensor},
        "decode+mim-jitter": {name: make(True) for name, make in views.items()},
        "decode+mim": {name: make(False) for name, make in views.items()},
        "decode+finetune": {"timm": finetune},
    }
