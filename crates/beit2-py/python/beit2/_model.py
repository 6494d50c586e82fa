"""What all models have: opening, options, images to arrays, pickling."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from . import _beit2
from ._errors import Error, InputError, WeightsWarning
from ._inputs import Encoded, Floats, Image, Images, read

Progress: TypeAlias = Callable[[int, int], object] | None
"""Called after each batch with the number of images that are done and of all."""

# Columns that hold images, the first that a batch has: pixels, files, paths of files.
_IMAGE_COLUMNS = ("image", "bytes", "path")

# Sides of images beyond this would need more memory than any machine has.
_LARGEST_SIDE = 8192
# As the program's --batch-size.
_LARGEST_BATCH = 65536
_MOST_WORKERS = 256

_M = TypeVar("_M", bound="Model")

# Everything that the compiled part wants to be told; ``None``: as the file says.
_DEFAULTS: dict[str, Any] = {
    "device": "cpu",
    "precision": "f32",
    "image_size": None,
    "crop_pct": None,
    "layer": None,
    "entry": None,
    "heads": None,
    "normalization": None,
    "mean": None,
    "std": None,
    "teacher": None,
    "teacher_heads": None,
    "teacher_activation": None,
    "range": None,
    "exif": None,
    "background": None,
    "mode": None,
    "stride": None,
    "resize": None,
    "scales": None,
    "flip": False,
}


class Model:
    """A trained model. Calls from several threads at once are safe; they compute without the GIL."""

    _kind: ClassVar[str]
    _model: _beit2.Model
    _path: str
    _options: dict[str, Any]
    _facts: dict[str, Any]
    # What was read, and how its files looked before that.
    _fingerprint: str
    _stamp: str

    def __init__(self, path: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """As ``open``: engines such as Ray make objects by their class (``fn_constructor_kwargs={"path": "runs/mim"}``)."""
        if path is None:
            raise TypeError(f"use beit2.{self._kind}.open(path)")
        open_: Any = getattr(type(self), "open")  # noqa: B009 (each kind has its own)
        self.__dict__.update(open_(path, **options).__dict__)

    @classmethod
    def _opened(cls: type[_M], path: str | os.PathLike[str], options: dict[str, Any]) -> _M:
        text = _path_text(path)
        chosen = _DEFAULTS | _checked(options)
        stamp = _stamp(text, chosen)
        model, doubts, fingerprint = _beit2.open(cls._kind, text, chosen)
        for doubt in doubts:
            warnings.warn(doubt, WeightsWarning, stacklevel=3)
        self = object.__new__(cls)
        self._model, self._options, self._facts = model, chosen, model.facts()
        self._fingerprint, self._stamp = fingerprint, stamp
        # Other processes may have other working directories.
        self._path = os.path.abspath(text) if os.path.exists(text) else text
        return self

    @property
    def path(self) -> str:
        """What was opened."""
        return self._path

    @property
    def device(self) -> str:
        """The device that it computes on."""
        return str(self._options["device"])

    @property
    def precision(self) -> str:
        """Precision of the operands of matmuls: ``f32``, ``bf16`` or ``int8``."""
        return str(self._options["precision"])

    @property
    def image_size(self) -> int:
        """Side of the images that the model sees, in pixels."""
        return int(self._facts["image_size"])

    @property
    def channels(self) -> int:
        """Channels of its images; 3 is RGB."""
        return int(self._facts["channels"])

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self._facts["patch_size"])

    def __repr__(self) -> str:
        return f"beit2.{self._kind}.open({self._path!r}, device={self.device!r}, precision={self.precision!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Reading all weights takes as long as opening them; files that nobody touched are not read again.
        stamp = _stamp(self._path, self._options)
        if not stamp or stamp != self._stamp:
            if _beit2.fingerprint(self._path, self._options) != self._fingerprint:
                raise Error(
                    f"{self._path}: the weights are not those of when the model was opened, so a pickle would be another model;"
                    " open it again"
                )
            self._stamp = stamp
        return _reopened, (type(self), self._path, self._options, self._fingerprint, self._extras())

    def _extras(self) -> dict[str, Any]:
        """What was set beside the options."""
        return {}

    def _rows(
        self, what: str, images: Images, batch_size: int, workers: int, progress: Progress
    ) -> npt.NDArray[Any]:
        """Values of all images, without the batch axis for a single one."""
        batch = _whole("batch_size", batch_size, 1, _LARGEST_BATCH)
        threads = _whole("workers", workers, 0, _MOST_WORKERS)
        _check_progress(progress)
        given = read(images)
        if _count(given) == 0:
            return self._none(what)
        if isinstance(given, Floats):
            values = self._model.of_floats(what, given.values.astype("<f4", copy=False).tobytes(), given.values.shape, batch)
        else:
            values = self._model.of_images(what, given.items, batch, threads, progress)
        rows = _numpy(values)
        return rows[0] if given.single else rows

    def _columns(self, batch: Mapping[str, Any], name: str, what: str, batch_size: int, workers: int) -> dict[str, Any]:
        """A batch of columns, as Ray Data passes it, with a column of results in the place of the images."""
        source = next((column for column in _IMAGE_COLUMNS if column in batch), None)
        if source is None:
            known = ", ".join(repr(column) for column in batch)
            raise InputError(f"the batch has the columns {known}; name that of the images 'image', 'bytes' or 'path'")
        if name in batch:
            raise InputError(f"the batch has a column {name!r} already")
        kept = {column: values for column, values in batch.items() if column == "path" or column != source}
        # Not by calling the model: Ray Data has its own ``__call__`` around that, which would wait for itself.
        return kept | {name: self._rows(what, batch[source], batch_size, workers, None)}

    def _none(self, what: str) -> npt.NDArray[Any]:
        """Values of no images: the shape and type that one would have."""
        blank = np.zeros((1, self.channels, self.image_size, self.image_size), np.float32)
        return _numpy(self._model.of_floats(what, blank.tobytes(), blank.shape, 1))[:0]

    def preprocess(self, images: Images, *, workers: int = 2, progress: Progress = None) -> npt.NDArray[np.uint8]:
        """What the model sees of images to decode: the shorter side resized, the centre cut out.

        Returns uint8 ``[B, image_size, image_size, C]``, for a single image without ``B``. Divided by 255 and with channels
        first it is the float32 input of the model.
        """
        threads = _whole("workers", workers, 0, _MOST_WORKERS)
        _check_progress(progress)
        given = read(images)
        if isinstance(given, Floats):
            raise InputError("float32 tensors are what a model sees already; give images to decode")
        if not given.items:
            return np.zeros((0, self.image_size, self.image_size, self.channels), np.uint8)
        views = _numpy(self._model.views(given.items, threads, progress))
        return views[0] if given.single else views


def _reopened(
    kind: type[Model], path: str, options: dict[str, Any], fingerprint: str, extras: dict[str, Any]
) -> Model:
    """A model out of a pickle: opened again, if its weights are still the same."""
    with warnings.catch_warnings():
        # They were told when it was opened first.
        warnings.simplefilter("ignore", WeightsWarning)
        model = kind._opened(path, options)
    if model._fingerprint != fingerprint:
        raise Error(f"{path}: the weights are not those of the model that was pickled; open it again")
    model.__dict__.update(extras)
    return model


def _stamp(path: str, options: dict[str, Any]) -> str:
    """How the files look now; nothing where opening them says better what is wrong."""
    try:
        return _beit2.stamp(path, options)
    except Error:
        return ""


def decode(image: Image, *, channels: int = 3) -> npt.NDArray[np.uint8]:
    """An image as the program decodes it: a path, bytes, a Pillow image or an array of integers, to uint8 ``[H, W, channels]``.

    Pixels are libjpeg-turbo's, EXIF orientation is applied, alpha is dropped.
    """
    given = read(image)
    if not isinstance(given, Encoded) or not given.single:
        raise InputError("decode takes one image: a path, bytes, a Pillow image or an array of integers")
    data, shape = _beit2.decode(given.items[0], _whole("channels", channels, 1, 64))
    return np.frombuffer(data, np.uint8).reshape(shape)


def _count(given: Encoded | Floats) -> int:
    return len(given.items) if isinstance(given, Encoded) else len(given.values)


def _numpy(values: tuple[bytearray, str, list[int]]) -> npt.NDArray[Any]:
    """A result as an array that owns its memory."""
    data, kind, shape = values
    return np.frombuffer(data, np.dtype(kind).newbyteorder("<")).reshape(shape)


def _path_text(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"a path is wanted, not {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        text = os.fsdecode(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the path of a model has to be UTF-8") from None
    return text


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options, or an InputError where the compiled part could only say that a type is wrong."""
    for name, value in options.items():
        if value is None and _DEFAULTS[name] is None:
            continue
        match name:
            case "image_size" | "stride":
                _whole(name, value, 1, _LARGEST_SIDE)
            case "layer" | "heads" | "teacher_heads":
                _whole(name, value, 0, 65536)
            case "crop_pct":
                _number(name, value)
            case "mean" | "std" | "scales":
                if isinstance(value, str) or not isinstance(value, Sequence):
                    raise InputError(f"{name} is a list of numbers, not {value!r}")
                for one in value:
                    _number(name, one)
            case "flip":
                if not isinstance(value, bool):
                    raise InputError(f"{name} is True or False, not {value!r}")
            case "resize":
                if not isinstance(value, str):
                    if not isinstance(value, Sequence) or len(value) != 2:
                        raise InputError(f'resize is "native" or two sides such as (2048, 512), not {value!r}')
                    for one in value:
                        _whole(name, one, 1, 65535)
            case _:
                if not isinstance(value, str) or not value.isprintable():
                    raise InputError(f"{name} is a text, not {value!r}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool | float) or not hasattr(type(value), "__index__"):
        raise InputError(f"{name} is a whole number, not {value!r}")
    number = int(value)
    if not least <= number <= most:
        raise InputError(f"{name} is {number}; it can be {least} to {most}")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InputError(f"{name} takes numbers, not {value!r}")
    return float(value)


def _check_progress(progress: Progress) -> None:
    if progress is not None and not callable(progress):
        raise InputError(f"progress is a function of two numbers, not {progress!r}")
