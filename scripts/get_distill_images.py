#!/usr/bin/env python3
"""Cut unpacked packages (see get_distill_images.sh) into a flat folder of small images without labels.

usage: get_distill_images.py SOURCES LISTING OUT

SOURCES holds one folder per package; LISTING is written by make_quickstart_data.py --listing. Large photographs become
random square-ish crops at several scales, at least a third of all files; drawings are put on white and kept whole.
Longer side at most 192 pixels, JPEG quality 90, names SOURCE_NUMBER.jpg. At the end most photographs are removed again, because
the teacher is for drawings (SHARE). Deterministic. Needs numpy, Pillow, zstandard.
"""
import collections
import io
import os
import random
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import zstandard
from PIL import Image

from make_quickstart_data import series_of

SIDE = 192
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
# Crops of one wallpaper or large photograph: this many per megapixel, within the bounds.
CROPS_PER_MEGAPIXEL, MIN_CROPS, MAX_CROPS = 12, 4, 40
CLIPART_SERIES = ("shapes/stars/", "computer/icons/flat-theme/", "signs_and_symbols/flags/", "recreation/games/cards/",
                  "special/gradients/")

# Of these sources one image in so many stays, of all others one in OTHER_SHARE.
SHARE = {"openclipart-png": 1, "tuxpaint-stamps-default": 1, "gcompris-qt-data": 2}
OTHER_SHARE = 6


def flatten(image):
    """RGB, transparency on white, reduced to about a thousand pixels where it is far larger."""
    image.draft("RGB", (4096, 4096))
    if image.mode in ("P", "LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if max(image.size) > 2000:
            image = image.convert("RGBa").reduce(max(image.size) // 1000).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def crop_to_ink(image):
    ink = np.asarray(image).min(axis=2) < 245
    if ink.sum() < 100:
        return None
    ys, xs = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    box = (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)
    margin = round(0.03 * max(box[2] - box[0], box[3] - box[1]))
    out = Image.new("RGB", (box[2] - box[0] + 2 * margin, box[3] - box[1] + 2 * margin), "white")
    out.paste(image.crop(box), (margin, margin))
    if max(out.size) > 3.5 * min(out.size):
        return None
    return out


def shrink(image):
    scale = SIDE / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(s * scale)) for s in image.size], Image.LANCZOS)
    side = max(image.width, image.height)
    if min(image.size) < side // 2:  # very long drawings: pad with white
        out = Image.new("RGB", [max(s, side // 2) for s in image.size], "white")
        out.paste(image, ((out.width - image.width) // 2, (out.height - image.height) // 2))
        image = out
    return image


def crops(image, rng):
    """Whole image first, then crops of three scales; nearly uniform ones are drawn again."""
    yield shrink(image)
    count = round(CROPS_PER_MEGAPIXEL * image.width * image.height / 1e6)
    for i in range(max(MIN_CROPS, min(MAX_CROPS, count))):
        for _ in range(4):
            low, high = ((0.12, 0.25), (0.25, 0.45), (0.45, 0.8))[i % 3]
            side = max(160, rng.uniform(low, high) * min(image.size))
            ratio = rng.uniform(0.8, 1.25)
            w, h = min(image.width, int(side * ratio)), min(image.height, int(side / ratio))
            x, y = rng.randint(0, image.width - w), rng.randint(0, image.height - h)
            piece = shrink(image.crop((x, y, x + w, y + h)))
            if np.asarray(piece.convert("L"), np.float32).std() > 12:
                yield piece
                break


def qt_resources(data):
    """The files inside a Qt .rcc archive, as (name, bytes). Layout: header, file data, names, tree of entries."""
    magic, version, tree, payload, names = struct.unpack(">4sIIII", data[:20])
    if magic != b"qres":
        raise ValueError("not a Qt resource file")
    width = 22 if version >= 2 else 14

    def name(at):
        (length,) = struct.unpack_from(">H", data, names + at)
        start = names + at + 6  # length, then a hash
        return data[start : start + 2 * length].decode("utf-16-be")

    def walk(node, path):
        at = tree + node * width
        name_at, flags = struct.unpack_from(">IH", data, at)
        here = path + "/" + name(name_at) if node else ""
        if flags & 2:
            count, first = struct.unpack_from(">II", data, at + 6)
            for i in range(count):
                yield from walk(first + i, here)
            return
        (start,) = struct.unpack_from(">I", data, at + 10)
        (length,) = struct.unpack_from(">I", data, payload + start)
        body = data[payload + start + 4 : payload + start + 4 + length]
        if flags & 1:
            body = zlib.decompress(body[4:])
        elif flags & 4:
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        yield here, body

    yield from walk(0, "")


def files(folder):
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(base, name)
            if not os.path.islink(path):
                yield path


def clipart(folder, listing):
    """All drawings but the validation images, their near-duplicates and their series; long series are cut short."""
    rows = [line.rstrip("\n").split("\t") for line in Path(listing).read_text().splitlines()]
    held_out = {group for side, group, _, _ in rows if side == "val"}
    banned, banned_series, root = set(), set(), os.path.join(folder, "usr/share/openclipart/png")
    for _, group, _, path in rows:
        if group in held_out:
            banned.add(os.path.realpath(os.path.join(root, path)))
            banned_series.add(series_of(path))
    per_series = collections.Counter()
    for path in files(root):
        relative = os.path.relpath(path, root)
        name = series_of(path)
        if not path.endswith(".png") or os.path.realpath(path) in banned or (len(name) > 3 and name in banned_series):
            continue
        key = next((s for s in CLIPART_SERIES if relative.startswith(s)), None)
        if key is not None:
            per_series[key] += 1
            if per_series[key] % 8 != 1:  # one of eight of the monotonous sets
                continue
        yield path


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sources, listing, out = sys.argv[1:]
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = 180_000_000
    os.makedirs(out, exist_ok=True)
    written, failed = collections.Counter(), 0
    # Tiny thumbnails of the validation drawings, so that no copy of one slips in from another place.
    root = os.path.join(sources, "openclipart-png/usr/share/openclipart/png")
    rows = [line.rstrip("\n").split("\t") for line in Path(listing).read_text().splitlines()]

    def thumb(image):
        return np.asarray(image.resize((16, 16), Image.BOX), np.float32).ravel() / 255

    val = []
    for side, _, _, path in rows:
        if side == "val":
            image = crop_to_ink(flatten(Image.open(os.path.join(root, path))))
            if image is not None:
                val.append(thumb(image))
    val = np.stack(val)

    def save(image, source):
        image.save(os.path.join(out, f"{source}_{written[source]:05d}.jpg"), quality=90)
        written[source] += 1

    def drawing(image, source):
        image = crop_to_ink(flatten(image))
        if image is None or max(image.size) < 48:
            return
        t = thumb(image)
        if np.sqrt(((val - t) ** 2).mean(axis=1)).min() < 0.05:
            return
        save(shrink(image), source)

    def photograph(image, source, rng):
        for piece in crops(flatten(image), rng):
            save(piece, source)

    for package in sorted(os.listdir(sources)):
        folder, rng = os.path.join(sources, package), random.Random(package)
        source = package.replace("_", "-")
        if package == "openclipart-png":
            work = ((p, None) for p in clipart(folder, listing))
        elif package == "gcompris-qt-data":
            work = ((n, b) for p in files(folder) if p.endswith(".rcc") for n, b in qt_resources(Path(p).read_bytes()))
        else:
            work = ((p, None) for p in files(folder))
        for name, body in work:
            if not name.lower().endswith(IMAGES) or "screenshot" in name.lower() or "symbols/alphabets" in name:
                continue
            try:
                image = Image.open(io.BytesIO(body) if body is not None else name)
                if min(image.size) < 48:
                    continue
                has_alpha = image.mode in ("P", "LA", "RGBA") or "transparency" in image.info
                whole = package in ("openclipart-png", "tuxpaint-stamps-default")
                opaque, large = not has_alpha and min(image.size) >= 300, image.mode == "RGBA" and min(image.size) >= 700
                if not whole and (opaque or large):
                    photograph(image, source, rng)
                else:
                    drawing(image, source)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                failed += 1
                print(f"{name}: {error}", file=sys.stderr)
    kept = collections.Counter()
    for i, name in enumerate(sorted(os.listdir(out))):
        source = name.split("_")[0]
        if i % SHARE.get(source, OTHER_SHARE) and i % OTHER_SHARE:
            os.remove(os.path.join(out, name))
        else:
            kept[source] += 1
    for source, n in sorted(kept.items()):
        print(f"{n:6d} {source} (of {written[source]})")
    print(f"{sum(kept.values()):6d} in all, {failed} unreadable")


if __name__ == "__main__":
    main()
