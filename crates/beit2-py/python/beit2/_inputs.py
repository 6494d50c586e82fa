"""What may be passed as images, and as what it reaches the compiled part: encoded images, or float tensors.

An array of integers is taken for the file that ``numpy.save`` would write, and a Pillow image for the file that it would be
saved as without loss, so that both go through the program's own decoder.
"""

import io
import os
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._errors import InputError

Image: TypeAlias = Any
"""A path, the bytes of an image file, a Pillow image, or an array (NumPy, or anything with ``__dlpack__`` such as a torch
tensor on the CPU): integers ``[H, W, C]`` or ``[H, W]``, or float32 in [0, 1] ``[C, H, W]`` of the model's size."""

Images: TypeAlias = Any
"""One :data:`Image`, a list of them, or an array with a batch axis: integers ``[B, H, W, C]`` or float32 ``[B, C, H, W]``."""

# Values of float32 images that are still taken for [0, 1]: a little more, because resampling overshoots.
_LOWEST, _HIGHEST = -0.5, 1.5

# EXIF's tag for how an image is turned.
_ORIENTATION = 0x0112

# Pillow's modes that a PNG file holds without loss; TIFF holds those of more bits.
_PNG_MODES = {"1", "LA", "P", "PA", "RGBA"}
_TIFF_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True)
class Encoded:
    """Images to decode."""

    items: list[bytes | str]
    single: bool


@dataclass(frozen=True)
class Floats:
    """float32 ``[B, C, H, W]``, standardised by the model."""

    values: npt.NDArray[np.float32]
    single: bool


def read(images: Images) -> Encoded | Floats:
    """Any images in the form that the compiled part takes."""
    if _is_batch(images):
        parts = [_one(image) for image in images]
        tensors = [part for part in parts if isinstance(part, np.ndarray)]
        encoded = [part for part in parts if not isinstance(part, np.ndarray)]
        if not tensors:
            return Encoded(encoded, single=False)
        if encoded:
            raise InputError("a batch mixes float32 tensors with images to decode; give either")
        shapes = sorted({tensor.shape for tensor in tensors})
        if len(shapes) > 1:
            raise InputError(f"a batch mixes float32 tensors of the shapes {_text(shapes)}; give one size")
        return _floats(np.stack(tensors), single=False)
    array = _array(images)
    if array is not None and array.ndim == 4:
        if array.dtype == np.float32:
            return _floats(array, single=False)
        return Encoded([_saved(image) for image in array], single=False)
    part = _one(images)
    if isinstance(part, np.ndarray):
        return _floats(part[None], single=True)
    return Encoded([part], single=True)


def _is_batch(images: Images) -> bool:
    """Whether this is a list of images, such as a list, a tuple, a pandas Series or an array of paths."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Mapping | Set):
        return False
    if isinstance(images, np.ndarray):
        return images.ndim == 1 and images.dtype.kind in "OUS"
    if _is_pillow(images) or _has_array(images):
        # A pandas Series of paths has `__array__`, and is a list.
        return type(images).__module__.partition(".")[0] in ("pandas", "polars") and hasattr(images, "__len__")
    return isinstance(images, Sequence)


def _one(image: Image) -> bytes | str | npt.NDArray[np.float32]:
    """One image: encoded bytes, a path, or float32 ``[C, H, W]``."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        text = os.fsdecode(path) if isinstance(path, bytes) else path
        if "\0" in text:
            raise InputError("a path contains a zero byte")
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            raise InputError(f"{text!r} cannot be the path of a file") from None
        return text
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if _is_pillow(image):
        return _pillow(image)
    array = _array(image)
    if array is None:
        raise InputError(
            f"{_name(image)} is no image; give a path, the bytes of an image file, a Pillow image or an array"
        )
    if array.dtype == np.float32:
        if array.ndim != 3:
            raise InputError(f"float32 images have the shape [C, H, W] or [B, C, H, W], not {_text(array.shape)}")
        return array
    return _saved(array)


def _saved(array: npt.NDArray[Any]) -> bytes:
    """The file that ``numpy.save`` would write."""
    if array.dtype.kind == "f":
        raise InputError(
            f"float images are float32 [C, H, W] in [0, 1], and this array is {array.dtype} of shape {_text(array.shape)};"
            " convert it with .astype(numpy.float32), or give bytes (uint8 [H, W, C])"
        )
    if array.dtype.kind not in "ui":
        raise InputError(f"an array of {array.dtype} is no image; give uint8 [H, W, C] or float32 [C, H, W]")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(f"an array of shape {_text(array.shape)} is no image; give uint8 [H, W, C] or float32 [C, H, W]")
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _floats(values: npt.NDArray[np.float32], single: bool) -> Floats:
    if values.size:
        lowest, highest = float(values.min()), float(values.max())
        # Not the other way round: NaN is in no range.
        if not (lowest >= _LOWEST and highest <= _HIGHEST):
            raise InputError(
                f"float32 images have values in [0, 1], and these lie in [{lowest:.3g}, {highest:.3g}]; the model standardises"
                " them itself"
            )
    return Floats(np.ascontiguousarray(values), single)


def _has_array(value: Any) -> bool:
    return any(hasattr(type(value), name) for name in ("__dlpack__", "__array_interface__", "__array__"))


def _array(value: Any) -> npt.NDArray[Any] | None:
    """The values of an array of any library, or ``None``."""
    if isinstance(value, np.ndarray):
        return value
    if not _has_array(value):
        return None
    try:
        if hasattr(type(value), "__dlpack__"):
            # torch refuses tensors that record gradients; their values are what is wanted.
            return np.from_dlpack(value.detach() if hasattr(value, "detach") else value)
        return np.asarray(value)
    except Exception as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"{_name(value)} cannot be read as an array ({why}); give one on the CPU, of integers or of float32"
        ) from error


def _is_pillow(value: Any) -> bool:
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def _pillow(image: Any) -> bytes:
    """A Pillow image as a file of the same pixels, with its EXIF orientation."""
    try:
        mode = image.mode
        if mode not in _PNG_MODES | _TIFF_MODES | {"L", "RGB"}:
            # CMYK, YCbCr and the like: as Pillow converts them, and so does the program's decoder.
            image, mode = image.convert("RGBA" if mode in ("La", "RGBa") else "RGB"), "RGB"
        exif = image.getexif() if _turned(image) else None
        buffer = io.BytesIO()
        if mode in _TIFF_MODES:
            image.save(buffer, "TIFF", **({"exif": exif} if exif else {}))
        elif mode in ("L", "RGB") and not exif:
            # The same as a PNG file, at the cost of a copy.
            return _saved(np.asarray(image))
        else:
            image.save(buffer, "PNG", compress_level=0, **({"exif": exif} if exif else {}))
        return buffer.getvalue()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{_name(image)} cannot be read ({error})") from error


def _turned(image: Any) -> bool:
    return int(image.getexif().get(_ORIENTATION, 1)) in range(2, 9)


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _text(shape: Sequence[Any]) -> str:
    return ", ".join(_text(side) if isinstance(side, tuple) else str(side) for side in shape).join("[]")
