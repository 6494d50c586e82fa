"""Images to visual tokens."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ._errors import InputError
from ._inputs import Images
from ._model import Model, Progress, _numpy


class Tokenizer(Model):
    """A trained visual tokenizer (VQ-KD).

    >>> tokenizer = Tokenizer.open("vqkd_encoder_base_decoder_3x768x12_clip.pth")
    >>> ids = tokenizer(["cat.jpg"])     # [1, 14, 14]
    >>> tokenizer.decode(ids).shape      # as CLIP's patch features
    (1, 196, 512)
    """

    _kind: ClassVar[str] = "Tokenizer"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str = "f32",
        crop_pct: float | None = None,
        entry: str | None = None,
        range: str | None = None,
        exif: str | None = None,
        background: str | None = None,
    ) -> "Tokenizer":
        """Opens a run of ``beit2 tokenizer train``, a checkpoint folder, or a weight file of this software or the official code.

        The arguments are those of :meth:`beit2.Embedder.open` and the flags of ``beit2 tokenizer encode``.

        Raises :class:`beit2.InputError` where other arguments help, else :class:`beit2.Error`.
        """
        options = {
            "device": device,
            "precision": precision,
            "crop_pct": crop_pct,
            "entry": entry,
            "range": range,
            "exif": exif,
            "background": background,
        }
        return cls._opened(path, options)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(self._facts["codebook_size"])

    @property
    def grid(self) -> int:
        """g: an image has g × g visual tokens."""
        return self.image_size // self.patch_size

    @property
    def teacher_dim(self) -> int:
        """Width of the features that :meth:`decode` gives."""
        return int(self._facts["teacher_dim"])

    def __call__(
        self, images: Images, *, batch_size: int = 32, workers: int = 2, progress: Progress = None
    ) -> npt.NDArray[np.int64]:
        """Code ids of images, int64 ``[B, g, g]``, row by row from the top left patch; for a single image ``[g, g]``.

        The ids are those of ``beit2 tokenizer encode``; the arguments are those of :meth:`beit2.Embedder.__call__`.
        """
        if isinstance(images, Mapping):
            return self._columns(images, "ids", "ids", batch_size, workers)  # type: ignore[return-value]
        return self._rows("ids", images, batch_size, workers, progress)

    def decode(self, ids: Any) -> npt.NDArray[np.float32]:
        """Code ids ``[B, g, g]`` or ``[g, g]`` to the decoder's prediction of the teacher's patch features, float32 ``[B, g²,
        teacher_dim]`` or ``[g², teacher_dim]``."""
        try:
            array = np.asarray(ids)
        except Exception as error:
            raise InputError(f"code ids are an array of integers ({error})") from error
        if array.dtype.kind not in "ui" or array.ndim not in (2, 3):
            raise InputError(f"code ids are integers [B, {self.grid}, {self.grid}], not {array.dtype} {list(array.shape)}")
        batch = array if array.ndim == 3 else array[None]
        if len(batch) == 0:
            return np.zeros((0, self.grid**2, self.teacher_dim), np.float32)
        if batch.size and int(batch.max()) >= self.codebook_size:
            raise InputError(f"code id {int(batch.max())} is not one of 0 to {self.codebook_size - 1}")
        features = _numpy(self._model.decode(batch.astype("<i8").tobytes(), batch.shape))
        return features if array.ndim == 3 else features[0]
