"""Images to classes."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from ._errors import InputError
from ._inputs import Images
from ._model import Model, Progress, _number, _whole


class Prediction(NamedTuple):
    """One class of an image."""

    label: int
    """Number of the class."""
    name: str | None
    """Its name, where it is known."""
    probability: float
    """Softmax of the logits; of a multi-label classifier the sigmoid of its own."""


class Classifier(Model):
    """A trained classifier.

    >>> classifier = Classifier.open("runs/classifier/best")
    >>> classifier("cat.jpg", top=1)
    [Prediction(label=3, name='cat', probability=0.98)]
    """

    _kind: ClassVar[str] = "Classifier"
    _names: list[str] | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str = "f32",
        names: Sequence[str] | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        entry: str | None = None,
        heads: int | None = None,
        normalization: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        range: str | None = None,
        exif: str | None = None,
        background: str | None = None,
    ) -> "Classifier":
        """Opens a run of ``beit2 finetune``, a checkpoint folder, or a classifier in official, timm or Hugging Face names.

        ``names``: names of the classes in their order, where the file has none. The other arguments are those of
        :meth:`beit2.Embedder.open` and the flags of ``beit2 predict``.

        Raises :class:`beit2.InputError` where other arguments help, else :class:`beit2.Error`.
        """
        options = {
            "device": device,
            "precision": precision,
            "image_size": image_size,
            "crop_pct": crop_pct,
            "entry": entry,
            "heads": heads,
            "normalization": normalization,
            "mean": mean,
            "std": std,
            "range": range,
            "exif": exif,
            "background": background,
        }
        self = cls._opened(path, options)
        if names is not None:
            if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
                raise InputError("names is a list of texts")
            if len(names) != self.classes:
                raise InputError(f"{len(names)} names were given, and the model in {path} has {self.classes} classes")
            self._names = list(names)
        return self

    def _extras(self) -> dict[str, Any]:
        return {"_names": self._names}

    @property
    def classes(self) -> int:
        """Number of the classes."""
        return int(self._facts["classes"])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty where they are unknown."""
        return list(self._facts["class_names"] if self._names is None else self._names)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several classes or none."""
        return bool(self._facts["multi_label"])

    def __call__(
        self,
        images: Images,
        *,
        top: int | None = None,
        threshold: float | None = None,
        batch_size: int = 32,
        workers: int = 2,
        progress: Progress = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The classes of images, the most probable first: a list for each image, for a single image one list.

        As ``beit2 predict``: ``top`` classes (5); of a multi-label classifier all of at least ``threshold`` (0.5). The other
        arguments are those of :meth:`beit2.Embedder.__call__`.
        """
        if threshold is not None and not self.multi_label:
            raise InputError("threshold is for multi-label classifiers; this one has one class for each image, use top")
        if threshold is not None and not 0.0 <= _number("threshold", threshold) <= 1.0:
            raise InputError("threshold must lie in [0, 1]")
        least = (0.5 if threshold is None else threshold) if self.multi_label else 0.0
        most = self.classes if self.multi_label else 5
        count = most if top is None else _whole("top", top, 1, 1 << 31)
        rows = self.probabilities(images, batch_size=batch_size, workers=workers, progress=progress)
        if rows.ndim == 1:
            return self._best(rows, count, least)
        return [self._best(row, count, least) for row in rows]

    def _best(self, row: npt.NDArray[np.float32], count: int, least: float) -> list[Prediction]:
        names = self.class_names
        # Stable: of equal probabilities the lower number comes first.
        order = np.argsort(-row, kind="stable")[:count]
        best = (Prediction(int(k), names[k] if names else None, float(row[k])) for k in order)
        return [one for one in best if one.probability >= least]

    def logits(
        self, images: Images, *, batch_size: int = 32, workers: int = 2, progress: Progress = None
    ) -> npt.NDArray[np.float32]:
        """Logits of images, float32 ``[B, classes]``; for a single image ``[classes]``."""
        return self._rows("logits", images, batch_size, workers, progress)

    def probabilities(
        self, images: Images, *, batch_size: int = 32, workers: int = 2, progress: Progress = None
    ) -> npt.NDArray[np.float32]:
        """Softmax of the logits (of a multi-label classifier their sigmoid), float32 ``[B, classes]``; for a single image
        ``[classes]``."""
        return self._rows("probabilities", images, batch_size, workers, progress)
