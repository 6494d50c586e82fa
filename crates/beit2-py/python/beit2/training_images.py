"""The images of training as training sees them, for loaders of other libraries."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _beit2
from ._errors import Error, ImageWarning, InputError
from ._model import _path_text, _whole
from .runs import _text, _toml

# Copies of one image in an epoch are counted above these bits.
_SAMPLE_BITS = 40
_LARGEST = 2**63 - 1


class TrainingImages:
    """Decoded, cropped, jittered, flipped and masked images of a training: the bytes that ``beit2`` trains on.

    A map-style dataset, such as torch's ``DataLoader`` takes. An item depends on seed, epoch and number alone, so it is the same
    for any number of workers, and in any process.

    >>> images = TrainingImages.open("runs/mim", epoch=3)
    >>> images[0]["image"].shape                                       # [H, W, C], uint8
    (224, 224, 3)
    >>> loader = DataLoader(images, batch_size=64, sampler=images.order(3), num_workers=4, drop_last=True)

    An item is a dictionary:

    - ``image``: uint8 ``[H, W, C]``, what the trained model sees. Divide by 255 and standardise as the model does.
    - ``second``: the tokenizer's view, if it has other pixels (pretraining).
    - ``mask``: bool ``[g, g]``, true for masked patches (pretraining).
    - ``label``: number of the class, -1 if it is unknown; only where images have one class each.
    - ``index``: number of the image, for :meth:`name`.

    In fine-tuning these are the images before random erasing, mixup and CutMix, which belong to a batch on its device.
    """

    epoch: int
    """The epoch of items that are asked for by number alone."""

    _settings: str
    _token_px: int | None
    _images: _beit2.Images
    _facts: dict[str, Any]

    def __init__(self) -> None:
        raise TypeError("use beit2.TrainingImages.open(run or recipe)")

    @classmethod
    def open(
        cls,
        recipe: str | os.PathLike[str],
        data: str | os.PathLike[str] | None = None,
        *,
        seed: int | None = None,
        epoch: int = 0,
        set: Mapping[str, Any] | None = None,
    ) -> "TrainingImages":
        """The images of a run, or those that a run of a recipe would have.

        - ``recipe``: a run directory, the name of a recipe in the program, or a recipe file, of the stages ``pretrain``,
          ``tokenizer`` and ``finetune``.
        - ``data``: images, as of ``--data``; those of the run if it is not given.
        - ``seed`` and ``set``: as of :func:`beit2.train`; ``epoch`` from 0.

        Raises :class:`beit2.InputError` or :class:`beit2.Error`.
        """
        if set is not None and not isinstance(set, Mapping):
            raise InputError("set is a mapping of recipe keys to values")
        given = dict(set or {})
        for key, value in [("data.train", None if data is None else _path_text(data)), ("seed", seed)]:
            if value is not None:
                if key in given:
                    raise InputError(f"{key} is given twice")
                given[key] = _whole(key, value, 0, _LARGEST) if key == "seed" else value
        overrides = [(_text("a key of set", key), _toml(key, value)) for key, value in given.items()]
        settings, token_px = _beit2.training_images(_path_text(recipe), overrides)
        return cls._opened(settings, token_px, _whole("epoch", epoch, 0, _LARGEST))

    @classmethod
    def _opened(cls, settings: str, token_px: int | None, epoch: int) -> "TrainingImages":
        self = object.__new__(cls)
        self._settings, self._token_px, self.epoch = settings, token_px, epoch
        self._images = _beit2.Images(settings, token_px)
        self._facts = self._images.facts()
        return self

    @property
    def stage(self) -> str:
        """``pretrain``, ``tokenizer`` or ``finetune``."""
        return str(self._facts["stage"])

    @property
    def seed(self) -> int:
        """Seed of order, augmentation and masks."""
        return int(self._facts["seed"])

    @property
    def batch_size(self) -> int:
        """Images of a step of the training."""
        return int(self._facts["batch_size"])

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty where images have none."""
        return list(self._facts["classes"])

    @property
    def settings(self) -> str:
        """All settings, as TOML."""
        return self._settings

    def __len__(self) -> int:
        return int(self._facts["images"])

    def __repr__(self) -> str:
        return f"<beit2.TrainingImages: {len(self)} images, {self.stage}, seed {self.seed}, epoch {self.epoch}>"

    def name(self, index: int) -> str:
        """The path of an image, or ``shard:member``."""
        return self._images.name(self._checked(index) & ((1 << _SAMPLE_BITS) - 1))

    def order(self, epoch: int | None = None) -> list[tuple[int, int]]:
        """The keys of all items of an epoch, in the order of training: the ``sampler`` of a ``DataLoader``."""
        epoch = self.epoch if epoch is None else _whole("epoch", epoch, 0, _LARGEST)
        return [(epoch, slot) for slot in self._images.order(epoch)]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """The item of a number, or of a key of :meth:`order`."""
        epoch, slot = key if isinstance(key, tuple) and len(key) == 2 else (self.epoch, key)
        slot = self._checked(slot)
        made = self._images.sample(_whole("epoch", epoch, 0, _LARGEST), slot)
        if made["replaced"]:
            name, why = made["replaced"]
            warnings.warn(f"{name} could not be used ({why}); another image took its place", ImageWarning, stacklevel=2)
        item: dict[str, Any] = {"image": _pixels(made["image"]), "index": made["index"]}
        if made["second"] is not None:
            item["second"] = _pixels(made["second"])
        if made["masked"] is not None:
            grid = self._facts["grid"]
            mask = np.zeros(grid * grid, bool)
            mask[made["masked"]] = True
            item["mask"] = mask.reshape(grid, grid)
        if self.classes and not self._facts["multi_label"]:
            item["label"] = -1 if made["label"] is None else made["label"]
        return item

    def _checked(self, slot: Any) -> int:
        number = _whole("index", slot, -len(self), _LARGEST)
        number = number + len(self) if number < 0 else number
        if number & ((1 << _SAMPLE_BITS) - 1) >= len(self):
            # What ends a loop over an old-style sequence.
            raise IndexError(f"there are {len(self)} images; number {number} is none of them")
        return number

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._settings, self._token_px, self.epoch, self._images.names())


def _reopened(settings: str, token_px: int | None, epoch: int, names: int) -> TrainingImages:
    images = TrainingImages._opened(settings, token_px, epoch)
    if images._images.names() != names:
        raise Error("the images are not those of when this was pickled: files have come, gone or changed their class")
    return images


def _pixels(view: tuple[bytearray, list[int]]) -> npt.NDArray[np.uint8]:
    data, shape = view
    return np.frombuffer(data, np.uint8).reshape(shape)
