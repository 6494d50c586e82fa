"""NVIDIA DALI's CPU operators and FFCV as programs of data.py, which starts this file with the Python that has them.

    data_others.py dali|ffcv IMAGE...

Answers each line `CELL COUNT` with a line of JSON, as beit2's `throughput --serve` does. Both work on batches in threads of
their own, so time is that of the whole process.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BATCH = 16
SCALE, RATIO, JITTER = [0.2, 1.0], [3 / 4, 4 / 3], [0.6, 1.4]


def dali(files: list[str]) -> tuple[str, dict[str, Callable[[], None]]]:
    """Crop and decode in one operator (only the crop is decoded), cubic resize with antialiasing, jitter on the view."""
    from nvidia import dali
    from nvidia.dali import fn, types

    @dali.pipeline_def(batch_size=BATCH, num_threads=1, device_id=None)
    def pipeline(cell: str):
        encoded, _ = fn.readers.file(files=files)
        if cell == "decode":
            return fn.decoders.image(encoded, device="cpu")
        image = fn.decoders.image_random_crop(encoded, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO)
        image = fn.resize(image, size=[224, 224], interp_type=types.INTERP_CUBIC, antialias=True)
        if cell == "decode+mim-jitter":
            factor = [fn.random.uniform(range=JITTER) for _ in range(3)]
            image = fn.color_twist(image, brightness=factor[0], contrast=factor[1], saturation=factor[2])
        return fn.flip(image, horizontal=fn.random.coin_flip())

    cells = {}
    for cell in ("decode", "decode+mim", "decode+mim-jitter"):
        built = pipeline(cell=cell)
        built.build()
        cells[cell] = lambda built=built: built.run()
    return dali.__version__, cells


def ffcv(files: list[str]) -> tuple[str, dict[str, Callable[[], None]]]:
    """The same JPEGs again in FFCV's file format at quality 90; the crop is resized by OpenCV's area filter."""
    import importlib.metadata

    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip
    from ffcv.writer import DatasetWriter
    from PIL import Image

    class Files:
        def __len__(self) -> int:
            return BATCH * 16

        def __getitem__(self, index: int):
            return Image.open(files[index % len(files)]).convert("RGB"), 0

    folder = tempfile.mkdtemp(prefix="beit2-ffcv-")
    path = str(Path(folder) / "images.beton")
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(Files())
    image = [RandomResizedCropRGBImageDecoder((224, 224), scale=tuple(SCALE)), RandomHorizontalFlip()]
    loader = Loader(
        path, batch_size=BATCH, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=True,
        pipelines={"image": image, "label": None},
    )  # fmt: skip

    def endless():
        while True:
            yield from loader

    batches = endless()
    return importlib.metadata.version("ffcv"), {"decode+mim": lambda: next(batches)}


def main() -> None:
    program, *files = sys.argv[1:]
    version, cells = {"dali": dali, "ffcv": ffcv}[program](files)
    print(json.dumps({"version": version, "cells": list(cells)}), flush=True)
    for line in sys.stdin:
        cell, count = line.split()
        batches = max(1, int(count) // BATCH)
        start = time.process_time()
        for _ in range(batches):
            cells[cell]()
        print(json.dumps({"cell": cell, "seconds": (time.process_time() - start) / (batches * BATCH)}), flush=True)


if __name__ == "__main__":
    main()
