"""What a pretraining run of the program wrote down of its images: docs/formats/token-cache.md."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt


def batches(folder: Path, epoch: int) -> list[bytes]:
    """SHA-256 of the tokenizer's views of each batch of an epoch, in the order of training."""
    (file,) = folder.glob(f"*/seed-*-batch-*-epoch-{epoch:04}.ids")
    content = file.read_bytes()
    assert content[:8] == b"BEIT2IDS"
    width, images, patches = struct.unpack_from("<3I", content, 12)
    record = 32 + width * images * patches + 4
    return [content[at : at + 32] for at in range(28, len(content), record)]


def digest(views: npt.NDArray[np.uint8]) -> bytes:
    """The same of views ``[B, H, W, 3]``."""
    of_all = hashlib.sha256()
    for view in views:
        of_all.update(hashlib.sha256(struct.pack("<2I", view.shape[1], view.shape[0]) + view.tobytes()).digest())
    return of_all.digest()
