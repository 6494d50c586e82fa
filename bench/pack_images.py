"""Photographs of original size for bench/pack.sh: crops of three photographs, enlarged, each a JPEG of quality 90.

Usage: pack_images.py PHOTOS OUT COUNT [WIDTH HEIGHT]
"""

import random
import sys
from pathlib import Path

from PIL import Image


def main() -> None:
    photos, out, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    size = (int(sys.argv[4]), int(sys.argv[5])) if len(sys.argv) > 5 else (1500, 1125)
    images = [Image.open(path).convert("RGB") for path in sorted(photos.iterdir())]
    rng = random.Random(0)
    for number in range(count):
        image = images[number % len(images)]
        # The shape of the output, as large as the photograph allows, from 60 % on.
        scale = min(image.width / size[0], image.height / size[1]) * rng.uniform(0.6, 1.0)
        width, height = size[0] * scale, size[1] * scale
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        crop = image.resize(size, Image.BICUBIC, box=(left, top, left + width, top + height))
        # Enlarging makes photographs smooth; cameras do not.
        noise = Image.effect_noise(size, 12).convert("L")
        crop = Image.blend(crop, Image.merge("RGB", (noise,) * 3), 0.08)
        folder = out / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        crop.save(folder / f"photo-{number:05}.jpg", quality=90)


main()
