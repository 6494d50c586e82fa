"""Makes 300 photograph-like images in six folders, and cat.jpg beside them: python first_hour_images.py QUICKSTART_DATA OUT

Photographs that everybody may copy and that need no download do not exist in this repository. So these are made: one of
the bundled drawings, enlarged, turned and lit, on a background of soft light and grain, with a shadow, blur, vignette and
sensor noise, stored as a camera stores it (640 x 480 JPEG, EXIF). A third are upright photographs whose EXIF entry turns them. Every tenth is
followed by a near-copy, as in a series of shots.
"""
import io
import pathlib
import sys
import tarfile

import numpy as np
from PIL import Image, ImageFilter

CLASSES = ["animals", "food", "people", "plants", "tools", "transportation"]
EACH = 50
WIDTH, HEIGHT = 640, 480


def drawings(data):
    """The first drawings of each class, as RGB."""
    found = {name: [] for name in CLASSES}
    for shard in sorted(pathlib.Path(data).glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                name = member.name.split("/")[0]
                # One more than there are photographs, for cat.jpg.
                if member.name.endswith(".webp") and name in found and len(found[name]) <= EACH:
                    image = Image.open(io.BytesIO(tar.extractfile(member).read()))
                    found[name].append(image.convert("RGB"))
    return found


def grain(rng, octaves=5):
    """Smooth noise of several scales in [0, 1]."""
    total = np.zeros((HEIGHT, WIDTH))
    for octave in range(octaves):
        cells = 3 * 2**octave
        noise = Image.fromarray(rng.random((cells * 3 // 4 + 2, cells + 2)).astype(np.float32), mode="F")
        total += np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 2**octave
    return (total - total.min()) / (total.max() - total.min())


def photograph(drawing, rng, shift=(0, 0), light=1.0):
    """A scene with the drawing in it."""
    texture = grain(rng)
    one, other = rng.uniform(60, 200, 3), rng.uniform(90, 240, 3)
    scene = one + (other - one) * texture[..., None]
    side = int(rng.uniform(280, 420))
    turn = rng.uniform(-15, 15)
    large = drawing.resize((side, side * drawing.height // drawing.width), Image.Resampling.LANCZOS)
    ink = Image.new("RGB", (WIDTH, HEIGHT), "white")
    place = (
        int(rng.uniform(0, max(1, WIDTH - large.width))) + shift[0],
        int(rng.uniform(-20, max(1, HEIGHT - large.height + 20))) + shift[1],
    )
    ink.paste(large.rotate(turn, Image.Resampling.BICUBIC, fillcolor="white"), place)
    shadow = ink.convert("L").filter(ImageFilter.GaussianBlur(14))
    scene *= 0.55 + 0.45 * np.roll(np.asarray(shadow)[..., None] / 255, (10, 14), (0, 1))
    ink = np.asarray(ink.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.4)))) / 255
    scene = scene * ink + (1 - ink.min(-1, keepdims=True)) * 235 * ink * 0.35
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    scene *= (light * (1 - 0.25 * (x**2 + y**2)))[..., None]
    scene += rng.normal(0, 4, scene.shape)
    return Image.fromarray(scene.clip(0, 255).astype(np.uint8))


def main():
    data, out = sys.argv[1], pathlib.Path(sys.argv[2])
    number = 0
    for name, images in drawings(data).items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for at in range(EACH):
            number += 1
            series = at % 10 == 1
            seed = number - 1 if series else number
            drawing = images[at - 1 if series else at]
            rng = np.random.default_rng(seed)
            image = photograph(drawing, rng, (4, 3) if series else (0, 0), 0.97 if series else 1.0)
            exif = Image.Exif()
            exif[0x010F] = "made by first_hour_images.py"
            if seed % 3 == 0:
                # Stored lying; the entry says to turn it a quarter.
                exif[0x0112] = 6
                image = image.rotate(90, expand=True)
            image.save(folder / f"IMG_{number:04}.jpg", quality=88, exif=exif)
        if name == "animals":
            photograph(images[EACH], np.random.default_rng(0)).save(out.parent / "cat.jpg", quality=88)


if __name__ == "__main__":
    main()
