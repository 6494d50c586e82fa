"""Images to features."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ._errors import InputError
from ._inputs import Images
from ._model import Model, Progress

Features: TypeAlias = Literal["mean", "cls", "concat", "patches"]


class Embedder(Model):
    """A frozen model of any kind as a function from images to features.

    >>> embedder = Embedder.open("runs/mim")
    >>> embedder("cat.jpg").shape                                   # [D]
    (768,)
    >>> embedder(["cat.jpg", "dog.jpg"], features="patches").shape  # [B, N, D]
    (2, 196, 768)
    """

    _kind: ClassVar[str] = "Embedder"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str = "f32",
        layer: int | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        entry: str | None = None,
        heads: int | None = None,
        normalization: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        teacher: str | None = None,
        teacher_heads: int | None = None,
        teacher_activation: str | None = None,
        range: str | None = None,
        exif: str | None = None,
        background: str | None = None,
    ) -> "Embedder":
        """Opens a run, a checkpoint folder or a weight file: a masked image model, a classifier, a Vision Transformer in
        official, timm or Hugging Face names, a tokenizer (its encoder), a published or distilled teacher.

        The arguments are the flags of ``beit2 embed``, and have its defaults:

        - ``device``: ``cpu``, ``cuda``, ``cuda:1``, …; ``precision``: ``f32``, ``bf16`` or ``int8``.
        - ``layer``: block whose output is used, counted from 1; 0 is the patch embedding.
        - ``image_size``: side of the images in pixels; ``crop_pct``: fraction of the resized image that the model sees.
        - ``entry``: which of several models of a file; ``heads``, ``normalization`` (``imagenet``, ``half``), ``mean`` and
          ``std`` (per channel, for values in [0, 1]): what the file does not say.
        - ``teacher`` (``clip``, ``siglip``, ``dino``, ``dinov2``, ``dinov3``), ``teacher_heads``, ``teacher_activation``.
        - ``range``, ``exif`` (``apply``, ``ignore``), ``background`` (``white``, ``black``, ``drop``): how images are decoded.

        Raises :class:`beit2.InputError` where other arguments help, else :class:`beit2.Error`.
        """
        options = {
            "device": device,
            "precision": precision,
            "layer": layer,
            "image_size": image_size,
            "crop_pct": crop_pct,
            "entry": entry,
            "heads": heads,
            "normalization": normalization,
            "mean": mean,
            "std": std,
            "teacher": teacher,
            "teacher_heads": teacher_heads,
            "teacher_activation": teacher_activation,
            "range": range,
            "exif": exif,
            "background": background,
        }
        return cls._opened(path, options)

    @property
    def width(self) -> int:
        """D, the width of the features of one token."""
        return int(self._facts["width"])

    @property
    def layer(self) -> int | None:
        """The block that features come from, counted from 1; ``None``: after the final norm."""
        layer: int | None = self._facts["layer"]
        return layer

    def __call__(
        self,
        images: Images,
        *,
        features: Features = "mean",
        batch_size: int = 32,
        workers: int = 2,
        progress: Progress = None,
    ) -> npt.NDArray[np.float32]:
        """Features of images, float32, as ``beit2 embed`` computes them.

        ``images``: a list of B images (paths, bytes, Pillow images, integer arrays ``[H, W, C]``), an integer array ``[B, H, W,
        C]``, or a float32 array ``[B, C, image_size, image_size]`` in [0, 1]; see :data:`beit2.Image`.

        ``features``: ``mean`` of the patch tokens or ``cls`` ``[B, D]``, both as ``concat`` ``[B, 2D]``, or ``patches`` ``[B, N,
        D]``, row by row from the top left. A single image has no axis B.

        A mapping of columns, as Ray Data passes it, is given back with a column ``features`` in the place of ``image`` or ``bytes``, or
        beside ``path``.

        Images are decoded by ``workers`` threads and computed ``batch_size`` at a time; ``progress(done, total)`` is called after
        each batch. An image that cannot be used is a :class:`beit2.Error` that names it.
        """
        if features not in ("mean", "cls", "concat", "patches"):
            raise InputError(f"features is {features!r}; it can be mean, cls, concat or patches")
        if isinstance(images, Mapping):
            # Of a type that mypy need not know: only engines pass it.
            return self._columns(images, "features", features, batch_size, workers)  # type: ignore[return-value]
        return self._rows(features, images, batch_size, workers, progress)

    # What scikit-learn wants of a step of a pipeline.

    def fit(self, X: Images, y: Any = None) -> "Embedder":
        """Nothing to learn; for pipelines of scikit-learn."""
        return self

    def transform(self, X: Images) -> npt.NDArray[np.float32]:
        """Features ``[B, D]``, the mean of the patch tokens; for pipelines of scikit-learn."""
        return self(X)

    def fit_transform(self, X: Images, y: Any = None) -> npt.NDArray[np.float32]:
        """As :meth:`transform`."""
        return self(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The path and the arguments of :meth:`open`, for pipelines of scikit-learn."""
        names = [name for name in inspect.signature(Embedder.open).parameters if name != "path"]
        return {"path": self._path} | {name: self._options[name] for name in names}

    def set_params(self, **params: Any) -> "Embedder":
        """Opens the model again with other arguments of :meth:`open`, so that a search can try them
        (``{"embedder__layer": [6, 9, 12]}``)."""
        known = self.get_params()
        for name in params:
            if name not in known:
                raise InputError(f"an Embedder has no parameter {name!r}; it has {', '.join(known)}")
        if params:
            self.__dict__.update(type(self).open(**(known | params)).__dict__)
        return self

    def __sklearn_clone__(self) -> "Embedder":
        # The model itself never changes, so that clones share it; set_params gives a clone one of its own.
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        return clone

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        images = InputTags(two_d_array=False, string=True)
        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=images,
            requires_fit=False,
            no_validation=True,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True
