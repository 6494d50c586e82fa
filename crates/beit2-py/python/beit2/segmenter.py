"""Images to the class of every pixel."""

import os
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ._errors import InputError
from ._inputs import Floats, Images, read
from ._model import _LARGEST_BATCH, _MOST_WORKERS, Model, Progress, _check_progress, _numpy, _whole


class Segmenter(Model):
    """A trained segmentation model (UPerNet).

    >>> segmenter = Segmenter.open("runs/segmenter/best")
    >>> labels = segmenter("street.jpg")            # [H, W], of the image's own size
    >>> segmenter.class_names[labels[0, 0]]
    'sky'
    """

    _kind: ClassVar[str] = "Segmenter"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str = "f32",
        mode: str | None = None,
        stride: int | None = None,
        resize: str | tuple[int, int] | None = None,
        scales: Sequence[float] | None = None,
        flip: bool = False,
        image_size: int | None = None,
        entry: str | None = None,
        heads: int | None = None,
        normalization: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        range: str | None = None,
        exif: str | None = None,
        background: str | None = None,
    ) -> "Segmenter":
        """Opens a run of ``beit2 segment train``, a checkpoint folder, or a published file of mmsegmentation.

        ``mode`` (``slide``, ``whole``), ``stride`` of the windows in pixels, ``resize`` (``"native"``, or longer and shorter side
        such as ``(2048, 512)``), ``scales`` and ``flip`` say how the model covers an image; the defaults are the model's. The
        other arguments are those of :meth:`beit2.Embedder.open` and the flags of ``beit2 segment predict``; ``precision`` is
        ``f32`` or ``bf16``.

        Raises :class:`beit2.InputError` where other arguments help, else :class:`beit2.Error`.
        """
        options = {
            "device": device,
            "precision": precision,
            "mode": mode,
            "stride": stride,
            "resize": resize,
            "scales": scales,
            "flip": flip,
            "image_size": image_size,
            "entry": entry,
            "heads": heads,
            "normalization": normalization,
            "mean": mean,
            "std": std,
            "range": range,
            "exif": exif,
            "background": background,
        }
        return cls._opened(path, options)

    @property
    def classes(self) -> int:
        """Number of the classes."""
        return int(self._facts["classes"])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return list(self._facts["class_names"])

    def __call__(
        self, images: Images, *, workers: int = 1, progress: Progress = None
    ) -> npt.NDArray[np.uint8] | list[npt.NDArray[np.uint8]]:
        """The class of every pixel, uint8 ``[H, W]`` of the image's own size: a list for a list of images, for a single image one
        array.

        The values are those of the masks that ``beit2 segment predict`` writes. Images are paths, bytes, Pillow images or integer
        arrays; for float32 tensors see :meth:`logits`.
        """
        threads = _whole("workers", workers, 0, _MOST_WORKERS)
        _check_progress(progress)
        given = read(images)
        if isinstance(given, Floats):
            raise InputError("float32 tensors have no pixels to label; give images to decode, or use logits()")
        labels = [_numpy(values) for values in self._model.labels(given.items, threads, progress)]
        return labels[0] if given.single else labels

    def logits(self, images: Images, *, batch_size: int = 1) -> npt.NDArray[np.float32]:
        """float32 images ``[B, C, H, W]`` in [0, 1] to logits ``[B, H/4, W/4, classes]``, each image seen as a whole; for one
        image ``[C, H, W]`` without B."""
        batch = _whole("batch_size", batch_size, 1, _LARGEST_BATCH)
        given = read(images)
        if not isinstance(given, Floats) or not len(given.values):
            raise InputError("logits takes float32 images [B, C, H, W] in [0, 1], at least one")
        values = given.values.astype("<f4", copy=False)
        rows = _numpy(self._model.of_floats("logits", values.tobytes(), values.shape, batch))
        return rows[0] if given.single else rows
