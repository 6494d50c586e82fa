#!/usr/bin/env python3
"""Make synthetic scenes for semantic segmentation: cut-outs with alpha on photographs, with exact masks.

usage: make_segment_scenes.py PACKAGES OUT [--train N] [--val N] [--seed N]     (make_segment_scenes.sh calls this)

Writes OUT/{train,val}/{images/NNNNN.jpg,masks/NNNNN.png,classes.txt}, OUT/README.md with sources and licences,
OUT/cutouts.tsv and OUT/scenes.tsv (what is in which scene), and OUT/preview.png. A mask is an 8-bit palette PNG whose
index is the class; a pixel has the class of the topmost cut-out with alpha of at least one half, else background, 0.
The same seed, packages and versions of Python, Pillow and resvg give the same bytes. A scene depends on the seed, its
side and its number only; neither cut-outs nor photographs are on both sides.
"""
import argparse
import collections
import math
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import segment_photographs
from segment_cutouts import CLASSES, CLIPART, STAMPS, read_cutouts

NAMES = ["background", *CLASSES]
COLOURS = ["#000000", *(colour for colour, _ in CLASSES.values())]
CLASS_LIST = "".join(f"{name}\t{colour}\n" for name, colour in zip(NAMES, COLOURS))
LICENCES = {"stamps": "GPL-2", "clipart": "public domain"}
COUNTS = (1, 2, 2, 2, 3, 3, 3, 4, 4, 5)  # cut-outs of a scene, each equally probable
LONG_SIDE = (160, 256)  # pixels
ASPECTS = (1, 4 / 3, 4 / 3, 3 / 2)
TURN = 30  # degrees to either side
INSIDE, LEFT_OVER, SMALLEST = 0.65, 0.5, 120  # share within the frame, share left when covered, pixels


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def by_class(cutouts):
    """class -> groups -> cut-outs: classes are drawn alike, and so are the groups of a class, whatever their sizes."""
    tree = {name: collections.defaultdict(list) for name in CLASSES}
    for p in cutouts:
        tree[p.category][p.group].append(p)
    return {name: list(groups.values()) for name, groups in tree.items()}


def prepare(image, side, longest, rng):
    """The cut-out flipped, turned, scaled to the size of a square of `side` pixels, recoloured, with soft edges."""
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-TURN, TURN), Image.BICUBIC, expand=True)
    image = image.crop(image.getchannel("A").getbbox())
    scale = min(side / math.sqrt(image.width * image.height), longest / max(image.size))
    image = image.resize([max(1, round(s * scale)) for s in image.size], Image.LANCZOS)
    gamma, gain, saturation = math.exp(rng.uniform(-0.2, 0.2)), rng.uniform(0.85, 1.1), rng.uniform(0.75, 1.15)
    table = [min(255, round(255 * gain * (v / 255) ** gamma)) for v in range(256)]
    colours = image.convert("RGB")
    grey = colours.convert("L").convert("RGB")
    colours = Image.blend(grey, colours, saturation).point(table * 3)
    alpha = image.getchannel("A").filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6)))
    colours.putalpha(alpha)
    return colours


def overlap(shape, frame, x, y):
    """Slices of a cut-out at (x, y) and of the frame where they meet; shapes are (height, width)."""
    top, left = max(0, y), max(0, x)
    bottom, right = min(frame[0], y + shape[0]), min(frame[1], x + shape[1])
    return (slice(top - y, bottom - y), slice(left - x, right - x)), (slice(top, bottom), slice(left, right))


def place(solid, owner, areas, rng):
    """A place for a cut-out where it is mostly inside and leaves enough of the others, or None."""
    for _ in range(15):
        x = round(rng.uniform(0, owner.shape[1]) - solid.shape[1] / 2)
        y = round(rng.uniform(0, owner.shape[0]) - solid.shape[0] / 2)
        mine, there = overlap(solid.shape, owner.shape, x, y)
        inside = np.count_nonzero(solid[mine])
        if inside < max(SMALLEST, INSIDE * np.count_nonzero(solid)):
            continue
        left = owner.copy()
        left[there][solid[mine]] = 0
        if all(np.count_nonzero(left == i + 1) >= max(SMALLEST, LEFT_OVER * a) for i, a in enumerate(areas)):
            return x, y
    return None


def compose(photographs, tree, rng):
    """One scene: image, mask, the photograph, and the cut-outs from the lowest to the topmost."""
    long_side, aspect = rng.randint(*LONG_SIDE), rng.choice(ASPECTS)
    size = (long_side, round(long_side / aspect))
    size = size[::-1] if rng.random() < 0.3 else size
    photograph = rng.choice(photographs)
    image = segment_photographs.crop(photograph, size, rng)
    mask, owner = np.zeros(size[::-1], np.uint8), np.zeros(size[::-1], np.uint8)
    used, areas, count = [], [], rng.choice(COUNTS)
    smallest, largest = (0.5, 0.85) if count == 1 else (0.35, 0.75) if count < 4 else (0.3, 0.55)
    for _ in range(count):
        name = rng.choice(list(CLASSES))
        cutout = rng.choice(rng.choice(tree[name]))
        side = min(size) * rng.uniform(smallest, largest)
        image = prepare(cutout.image, side, max(size), rng)
        solid = np.asarray(image.getchannel("A")) >= 128
        found = place(solid, owner, areas, rng)
        if found is None:
            continue
        image.paste(image, found, image.getchannel("A"))
        mine, there = overlap(solid.shape, owner.shape, *found)
        areas.append(np.count_nonzero(solid[mine]))
        used.append(cutout)
        mask[there][solid[mine]] = NAMES.index(name)
        owner[there][solid[mine]] = len(used)
    return image, mask, photograph, used


def write_side(out, side, count, photographs, cutouts, seed):
    """Writes the scenes of one side; returns a row for scenes.tsv, pixels and scenes by class."""
    folder, tree = os.path.join(out, side), by_class([p for p in cutouts if p.side == side])
    photographs = [p for p in photographs if p.side == side]
    if os.path.isdir(folder):
        shutil.rmtree(folder)
    for part in ("images", "masks"):
        os.makedirs(os.path.join(folder, part))
    with open(os.path.join(folder, "classes.txt"), "w") as f:
        f.write(CLASS_LIST)
    palette = [v for colour in COLOURS for v in rgb(colour)]
    palette += [0] * (768 - len(palette))  # a shorter one makes 4-bit files, which some programs cannot read
    rows, pixels, scenes = [], np.zeros(len(NAMES), np.int64), np.zeros(len(NAMES), np.int64)
    for number in range(count):
        rng, used = random.Random(f"{seed}/{side}/{number}"), []
        while not used:  # a cut-out too thin for its size finds no place
            image, mask, photograph, used = compose(photographs, tree, rng)
        image.save(os.path.join(folder, "images", f"{number:05d}.jpg"), quality=92)
        indexed = Image.fromarray(mask).convert("P")
        indexed.putpalette(palette)
        indexed.save(os.path.join(folder, "masks", f"{number:05d}.png"))
        here = np.bincount(mask.ravel(), minlength=len(NAMES))
        pixels, scenes = pixels + here, scenes + (here > 0)
        licences = sorted({photograph.licence} | {LICENCES[p.path.split("/")[0]] for p in used})
        rows.append((f"{side}/{number:05d}", f"{photograph.package}/{photograph.name}",
                     " ".join(p.path for p in used), ", ".join(licences)))
    return rows, pixels, scenes


def overlay(image, mask):
    """The image with its classes in colour, and their outlines."""
    image, ids = image.convert("RGB"), np.asarray(mask)
    colours = np.array([rgb(c) for c in COLOURS], np.float32)[ids]
    shown = np.asarray(image, np.float32)
    shown = np.where(ids[:, :, None] > 0, 0.4 * shown + 0.6 * colours, 0.6 * shown)
    edge = np.zeros(ids.shape, bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    shown[edge] = 255
    return Image.fromarray(shown.astype(np.uint8))


def write_preview(out, counts):
    """Twelve scenes, nine of training and three of validation, each beside its classes in colour."""
    room, columns, legend = LONG_SIDE[1], 3, 50
    width, height = 2 * room + 12, room + 12
    shown = [("train", i) for i in range(min(9, counts["train"]))] + [("val", i) for i in range(min(3, counts["val"]))]
    bottom = math.ceil(len(shown) / columns) * height
    sheet = Image.new("RGB", (columns * width, bottom + legend), "white")
    for i, (side, number) in enumerate(shown):
        image = Image.open(os.path.join(out, side, "images", f"{number:05d}.jpg"))
        mask = Image.open(os.path.join(out, side, "masks", f"{number:05d}.png"))
        factor = room / max(image.size)
        size = [round(s * factor) for s in image.size]
        both = image.resize(size, Image.LANCZOS), overlay(image, mask).resize(size, Image.LANCZOS)
        left, top = i % columns * width + (width - 2 * size[0] - 4) // 2, i // columns * height
        for k, image in enumerate(both):
            sheet.paste(image, (left + k * (size[0] + 4), top + (height - size[1]) // 2))
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(16), 10
    for name, colour in zip(NAMES, COLOURS):
        draw.rectangle((x, bottom + 16, x + 18, bottom + 34), fill=colour)
        draw.text((x + 24, bottom + 15), name, fill="black", font=font)
        x += 44 + round(draw.textlength(name, font=font))
    sheet.save(os.path.join(out, "preview.png"))


def table(cutouts, found):
    """The counts per class as Markdown: cut-outs, their groups, scenes and pixels of both sides."""
    lines = ["| class | cut-outs: train, val | groups: train, val | scenes: train, val | pixels: train, val |",
             "|---|---:|---:|---:|---:|"]
    for i, name in enumerate(NAMES):
        mine = {side: [p for p in cutouts if p.category == name and p.side == side] for side in found}
        drawn = ", ".join(str(len(m)) for m in mine.values()) if i else "–"
        groups = ", ".join(str(len({p.group for p in m})) for m in mine.values()) if i else "–"
        scenes = ", ".join(f"{s[i]:,}" for _, _, s in found.values())
        share = ", ".join(f"{100 * p[i] / p.sum():.1f} %" for _, p, _ in found.values())
        lines.append(f"| {name} | {drawn} | {groups} | {scenes} | {share} |")
    return "\n".join(lines)


def write_lists(out, packages, photographs, cutouts, found, seed):
    """README.md, cutouts.tsv and scenes.tsv."""
    with open(os.path.join(out, "cutouts.tsv"), "w") as f:
        f.write("side\tclass\tgroup\tname\tpackage\tlicence\n")
        for p in sorted(cutouts, key=lambda p: (NAMES.index(p.category), p.side, p.group, p.path)):
            short = p.path.split("/")[0]
            package = STAMPS if short == "stamps" else CLIPART
            f.write(f"{p.side}\t{p.category}\t{p.group}\t{p.path}\t{package}\t{LICENCES[short]}\n")
    with open(os.path.join(out, "scenes.tsv"), "w") as f:
        f.write("scene\tphotograph\tcut-outs, the topmost last\tlicences\n")
        f.writelines("\t".join(row) + "\n" for rows, _, _ in found.values() for row in rows)
    with open(os.path.join(packages, "versions.tsv")) as f:
        versions = sorted({line.strip().replace("\t", " ") for line in f})
    text = ["# Synthetic scenes for semantic segmentation", "",
            "These scenes are synthetic: drawings and cut-out photographs of single things, pasted on photographs at",
            "random. They say whether a segmenter learns; they say nothing of real scenes.", "",
            f"Made by `scripts/make_segment_scenes.sh` of beit2 with seed {seed}: "
            + " and ".join(f"{len(rows):,} {side}" for side, (rows, _, _) in found.items()) + " scenes.",
            "`masks/` holds class ids, in the order of `classes.txt`. `scenes.tsv` tells what each scene is made of,",
            "`cutouts.tsv` lists the cut-outs. No cut-out, near-copy of one or photograph is on both sides.", "",
            table(cutouts, found), "",
            "## Cut-outs", "", "| package | licence | cut-outs |", "|---|---|---:|"]
    for short, package in (("stamps", STAMPS), ("clipart", CLIPART)):
        number = sum(p.path.startswith(short) for p in cutouts)
        text.append(f"| {package} | {LICENCES[short]} | {number} |")
    text += ["", "## Photographs", "", "| photograph | side | package | author | licence |", "|---|---|---|---|---|"]
    text += [f"| {p.name} | {p.side} | {p.package} | {p.author} | {p.licence} |" for p in photographs]
    text += ["", "Packages of Debian, their licences in full in `usr/share/doc/*/copyright` below `packages/`:", ""]
    text += [f"- {line}" for line in versions]
    with open(os.path.join(out, "README.md"), "w") as f:
        f.write("\n".join(text) + "\n")


def check(out, counts, photographs, cutouts, found):
    """What the files promise, read back from the disk; a list of what does not hold."""
    failed = []
    sides = collections.defaultdict(set)
    for p in cutouts:
        sides[p.group].add(p.side)
    if any(len(s) > 1 for s in sides.values()):
        failed.append("a group of cut-outs is on both sides")
    for side, count in counts.items():
        if not any(p.side == side for p in photographs):
            failed.append(f"{side}: no photograph")
        ids = set()
        for number in range(count):
            image = Image.open(os.path.join(out, side, "images", f"{number:05d}.jpg"))
            mask = Image.open(os.path.join(out, side, "masks", f"{number:05d}.png"))
            if image.size != mask.size or mask.mode != "P" or image.mode != "RGB":
                failed.append(f"{side}/{number:05d}: sizes or modes")
            ids |= set(np.unique(np.asarray(mask)).tolist())
        if count >= 100 and ids != set(range(len(NAMES))):
            failed.append(f"{side}: classes {sorted(ids)} instead of all {len(NAMES)}")
        if len(found[side][0]) != count:
            failed.append(f"{side}: {len(found[side][0])} scenes instead of {count}")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", help="folder of the unpacked packages")
    parser.add_argument("out", help="folder for the scenes; its train/ and val/ are replaced")
    parser.add_argument("--train", type=int, default=2400, help="training scenes (%(default)s)")
    parser.add_argument("--val", type=int, default=360, help="validation scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, not of the split (%(default)s)")
    args = parser.parse_args()
    counts = {"train": args.train, "val": args.val}
    if min(counts.values()) < 1:
        parser.error("--train and --val must be at least 1")

    for package in (STAMPS, CLIPART, *segment_photographs.PACKAGES):
        if not os.path.isdir(os.path.join(args.packages, package)):
            sys.exit(f"{args.packages} holds no unpacked package {package}; make_segment_scenes.sh fetches it")
    for side in counts:  # train/ and val/ are replaced, but only those of an earlier call
        folder = os.path.join(args.out, side)
        listed = os.path.join(folder, "classes.txt")
        if os.path.exists(folder) and not (os.path.isfile(listed) and Path(listed).read_text() == CLASS_LIST):
            sys.exit(f"{folder} is there and not from this script; remove it or name another folder")

    photographs = segment_photographs.read_photographs(args.packages)
    cutouts, reasons = read_cutouts(args.packages)
    print(f"{len(photographs)} photographs, {len(cutouts)} cut-outs; left out: "
          + ", ".join(f"{n} {why}" for why, n in reasons.most_common()), flush=True)
    found = {side: write_side(args.out, side, n, photographs, cutouts, args.seed) for side, n in counts.items()}
    write_preview(args.out, counts)
    write_lists(args.out, args.packages, photographs, cutouts, found, args.seed)
    print(table(cutouts, found))
    failed = check(args.out, counts, photographs, cutouts, found)
    print("all checks hold" if not failed else "FAILED: " + "; ".join(failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
