#!/usr/bin/env python3
"""Make the bundled quickstart images (crates/beit2-quickstart-data/data/*.tar) from Debian's openclipart-png.

usage:
    apt-get download openclipart-png            # 1:0.18+dfsg-19, 131 MB, public domain
    dpkg -x openclipart-png_*.deb clipart
    python3 scripts/make_quickstart_data.py clipart crates/beit2-quickstart-data/data

Needs Python 3.9+, numpy and Pillow with WebP; nothing is downloaded and nothing is random: the same package and the
same Pillow give the same bytes. Takes about two minutes on one core.

What it does
    1. picks drawings from the package's directories (CATEGORIES) and, for `unsorted/`, by name (BY_HAND);
       symbolic links are skipped, so no file is taken twice
    2. puts transparency on white, crops to the drawing with a small margin, scales the longer side to --side pixels
       and pads the shorter one with white to at least --short pixels
    3. drops nearly empty and very long images and thin line drawings; prefers images with colour, and fills up
       with grey-shaded drawings and silhouettes only as far as the wanted number asks (--grey)
    4. groups near-duplicates: small distance of tiny thumbnails (colour, and shape alone, so that recoloured and
       black-and-white versions meet) or the same name but for numbers, colours and directions; a large group keeps
       only a few members, and a group is wholly training or wholly validation
    5. writes WebDataset tar shards: classes.txt first, then KEY.webp and KEY.cls (the decimal label) per image,
       classes interleaved
    6. checks every promise above on the files it has written and prints the table
"""
import argparse
import collections
import hashlib
import io
import os
import re
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

# Category -> directories of the package, taken with everything below them; the longest match wins.
CATEGORIES = {
    "animals": ["animals"],
    "electronics": ["computer", "electronics", "office/telephone"],
    "food": ["food"],
    "fruit": ["food/fruit", "food/vegetables"],
    "geography": ["geography", "science/astronomy", "signs_and_symbols/weather"],
    "holidays": ["recreation/holiday", "recreation/party", "recreation/religion"],
    "house": ["buildings", "containers", "electronics/bulb", "signs_and_symbols/clocks"],
    "office": ["office", "education", "science", "signs_and_symbols/money", "signs_and_symbols/awards"],
    "patterns": ["special/patterns", "decorations"],
    "people": ["people"],
    "plants": ["plants"],
    "recreation": ["recreation"],
    "shapes": ["shapes", "buttons", "computer/buttons"],
    "signs": ["signs_and_symbols", "transportation/roadsigns"],
    "tools": ["tools"],
    "transportation": ["transportation"],
}
# Directories that are series of near-duplicates, or not images of anything.
LEFT_OUT = ["computer/icons", "people/clothing/pantyhose", "recreation/games/cards", "shapes/callouts",
            "shapes/flowchart", "shapes/stars", "signs_and_symbols/flags", "signs_and_symbols/led",
            "signs_and_symbols/map_symbols", "special/gradients", "transportation/aiga-symbols", "unsorted"]
# Single files (by the start of the path) that go elsewhere than their directory says; "" leaves them out.
BY_HAND = {}


def by_hand(category, directory, names):
    for name in names.split():
        BY_HAND[f"{directory}/{name}"] = category


by_hand("animals", "unsorted", """Anatra Colombo Pinguino ape_miele cammello colombo2 elefante gabbiano mucca papera
    pecorella pennuto pescetto striscia_agnell struzzo marchio_gallina""")
by_hand("holidays", "decorations", "lightly_decorated evergreen_wreath wreath")
by_hand("holidays", "plants/trees/evergreen", "christmas")
by_hand("holidays", "food/desserts", "birthday")
by_hand("house", "unsorted", "Condominio aziendaVendite fattoria igloo grondaia grattacieli")
by_hand("house", "signs_and_symbols/map_symbols", "castle house_0 ell_house farm")
by_hand("people", "unsorted", "Attaccapanni borsetta calzettoni vestito guanti silouettedonn")
by_hand("food", "unsorted", "Cornetto Tacchino Uovo tramezzino")
by_hand("geography", "unsorted", "landscape_near stones_01 blocco_ghiaccio")
by_hand("geography", "signs_and_symbols/map_symbols", "hill mountain mapa_stawisk")
by_hand("holidays", "unsorted", "festoni fiocco ghirlande angel_01")
by_hand("house", "unsorted", """asse_da_stiro biberon ciuccio recznik sapone scatolone scodella serratura set_gatti
    scala_doppia""")
by_hand("office", "unsorted", "blocco_notes tavolozza provette analisi tavola_esame stetoscopio")
by_hand("people", "unsorted", """Traslocatore carpentiere donna_casinista imbianchino paper_RPSWB principessa ragazz
    rock_RPSWB scissors_RPSWB signorin spaventapasseri""")
by_hand("plants", "unsorted", "foglie giardinaggio rosa2 rose van_gogh")
by_hand("plants", "signs_and_symbols/map_symbols", "tree plant azalea foxglove hydrangea conifer")
by_hand("recreation", "unsorted", "pesistica tenda_da zaino sacco_a_pelo")
by_hand("tools", "unsorted", """Martellare Pittura carretta lampada_da metro_avv motosega pinzatrice sega_per
    profilati""")
by_hand("transportation", "unsorted", "Montacarichi ambulanza betoniera caterpillar")
by_hand("", "signs_and_symbols", """_armenia _italy _sweden argentina british_virgin canada_new flag_of denmark_jut
    pitcairn card_figures clouds_jon""")
# A sign that is no image for a general audience, images that lost their linked part, nudes, blots, flags, dot grids.
by_hand("", "decorations", "sunwheel")
by_hand("", "signs_and_symbols", "sunwheel")
by_hand("", "shapes", """shadow_babe stripper collection_of tangram glass_buttons jigsaw/jigsaw_blue jigsaw/jigsaw_green
    free_buttons svg_buttons""")
by_hand("", "computer/buttons", "free_buttons svg_buttons")
by_hand("", "people", """stylized_yoga sexy_lady stripper female_rollandin silhouette_female silhouette_male pregnancy
    collection_of erotic nude naked""")
by_hand("", "animals", "cymru_flag 2_dead_frogs birds/penguin/tux_didier")
by_hand("", "recreation", "sports/stylized_yoga religion/creation_day_7_number_ge_04")
by_hand("", "tools", "gallows route_jakob")
by_hand("", "geography", "basque_patricia calebasse canada_umbrella war_drum arkansas")
by_hand("", "tools", "weapons/bullet_hole")
by_hand("", "special/patterns", "pattern-dots-square-grid")


CAP = {"train": 260, "val": 60}
FLOOR = {"train": 55, "val": 15}
MAX_ASPECT = 3.5  # longest side over shortest, after cropping to the drawing
MIN_SIDE = 40  # pixels of the drawing before scaling
MIN_INK = 0.04  # share of pixels that are not white
MIN_SUBSTANCE = 0.09  # what an image without colour must have: thin outlines and bare maps have less
TWIN = (0.03, 0.97)  # of a group, only members that differ by more than this are kept (thumbnail, shape)
GROUP_CAP = 20  # members kept of a group of near-duplicates
COLOURS = """black blue brown cyan gold golden gray green grey lime magenta orange pink purple red silver violet white
    yellow bw color colour colored dark light bn arancioni marroni rosse verdi viola grigia grigio""".split()
POSITIONS = """left right up down upper lower top bottom open closed on off full empty small big large mini tiny lit
    unlit front back side corner north south east west new old part alt outline shaded simple""".split()


def category_of(path):
    best, found = -1, None
    for prefix, category in BY_HAND.items():
        if path.startswith(prefix) and len(prefix) > best:
            best, found = len(prefix), category or None
    if best >= 0:
        return found
    folders = [(d, None) for d in LEFT_OUT] + [(d, c) for c, ds in CATEGORIES.items() for d in ds]
    for directory, category in folders:
        if path.startswith(directory + "/") and len(directory) > best:
            best, found = len(directory), category
    return found


def series_of(path):
    """The file name without numbers, colours and directions: equal for the members of one series."""
    words = re.split(r"[^a-z]+", os.path.splitext(os.path.basename(path))[0].lower())
    words = [w for w in words if len(w) > 1 and w not in COLOURS and w not in POSITIONS]
    return " ".join(words)


def on_white(path):
    """The drawing on white, cropped to what is not white plus a margin; longest side at most 512."""
    image = Image.open(path)
    width, height = image.size
    if width * height > 180_000_000:
        return None
    image = image.convert("RGBA").convert("RGBa")
    factor = max(width, height) // 512
    if factor > 1:
        image = image.reduce(factor)
    image = image.convert("RGBA")
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    flat = flat.convert("RGB")
    ink = np.asarray(flat).min(axis=2) < 245
    if ink.sum() < 200:
        return None
    ys, xs = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    box = [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
    touches = (box[0] == 0) + (box[1] == 0) + (box[2] == flat.width) + (box[3] == flat.height)
    margin = 0 if touches == 4 and ink.mean() > 0.7 else round(0.03 * max(box[2] - box[0], box[3] - box[1]))
    out = Image.new("RGB", (box[2] - box[0] + 2 * margin, box[3] - box[1] + 2 * margin), "white")
    out.paste(flat.crop(box), (margin, margin))
    return out


def fit(image, side, short):
    scale = side / max(image.size)
    size = [max(1, round(s * scale)) for s in image.size]
    image = image.resize(size, Image.LANCZOS)
    padded = [max(s, short) for s in size]
    if padded == size:
        return image
    out = Image.new("RGB", padded, "white")
    out.paste(image, tuple((p - s) // 2 for p, s in zip(padded, size)))
    return out


class Drawing:
    pass


def describe(image):
    """Numbers used for choosing and for finding near-duplicates."""
    p = Drawing()
    a = np.asarray(image, np.float32) / 255
    chroma = a.max(axis=2) - a.min(axis=2)
    ink = a.min(axis=2) < 0.94
    p.ink = ink.mean()
    p.colour = (chroma > 0.10).mean()
    p.colour_of_ink = (chroma > 0.10)[ink].mean() if ink.any() else 0
    grey = a.mean(axis=2)
    p.tone = ((grey > 0.15) & (grey < 0.9)).mean()
    p.substance = p.tone + 0.3 * p.ink
    tiny = np.asarray(image.resize((16, 16), Image.BOX), np.float32) / 255
    p.thumb = tiny.reshape(-1)
    # Shape alone: the luminance of edges, normalised, so that recoloured versions agree.
    square = np.asarray(image.convert("L").resize((32, 32), Image.BOX), np.float32)
    gx, gy = np.diff(square, axis=1)[:31, :], np.diff(square, axis=0)[:, :31]
    edges = np.hypot(gx[:31], gy[:31])
    edges = np.minimum(edges, 40.0)
    edges = edges - edges.mean()
    p.edges = (edges / (np.linalg.norm(edges) + 1e-6)).reshape(-1)
    mask = np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize((24, 24), Image.BOX), np.float32) / 255
    mask = mask - mask.mean()
    norm = np.linalg.norm(mask)
    p.mask = (mask / norm if norm > 1 else mask * 0).reshape(-1)
    return p


def read_images(root, side, short):
    images, reasons, taken = [], collections.Counter(), set()
    candidates = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = os.path.relpath(os.path.join(folder, name), root)
            category = category_of(path) if name.endswith(".png") else None
            if category is not None:
                candidates.append((os.path.islink(os.path.join(folder, name)), path, category))
    for _link, path, category in sorted(candidates):  # files before links to them
        real = os.path.realpath(os.path.join(root, path))
        if real in taken:
            reasons["link to another file"] += 1
            continue
        taken.add(real)
        image = on_white(real)
        if image is None:
            reasons["empty or far too large"] += 1
            continue
        if max(image.size) > MAX_ASPECT * min(image.size):
            reasons["very long"] += 1
            continue
        if max(image.size) < MIN_SIDE:
            reasons["too small"] += 1
            continue
        image = fit(image, side, short)
        p = describe(image)
        p.path, p.category, p.image, p.series = path, category, image, series_of(path)
        p.is_colour = p.colour > 0.01 and p.colour_of_ink > 0.03
        if p.ink < MIN_INK:
            reasons["nearly empty"] += 1
        elif not p.is_colour and p.substance < MIN_SUBSTANCE:
            reasons["thin line drawings"] += 1
        else:
            images.append(p)
    images.sort(key=lambda p: p.path)
    return images, reasons


def components(links, series):
    """Union-find: the smallest index of each image's connected component."""
    parent = list(range(len(series)))

    def find(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i, j):
        a, b = find(i), find(j)
        parent[max(a, b)] = min(a, b)

    for i, j in zip(*np.nonzero(np.triu(links, 1))):
        join(int(i), int(j))
    first = {}
    for i, key in enumerate(series):
        if len(key[1]) >= 4:
            join(i, first.setdefault(key, i))
    return [find(i) for i in range(len(series))]


def group(images):
    """Near-duplicates and series: p.tight is the group to thin, p.group a wider one that stays on one side."""
    thumbs = np.stack([p.thumb for p in images])
    squares = (thumbs**2).sum(axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * thumbs @ thumbs.T, 0) / thumbs.shape[1])
    spread = thumbs.std(axis=1)
    contrast = np.minimum(spread[:, None], spread[None])  # flat images are all near one another
    edges = np.stack([p.edges for p in images])
    mirror = edges.reshape(-1, 31, 31)[:, :, ::-1].reshape(edges.shape)
    masks = np.stack([p.mask for p in images])
    same_edges, same_mask, mirrored = edges @ edges.T, masks @ masks.T, edges @ mirror.T

    tight = (distance < np.minimum(0.09, 0.3 * contrast)) | (same_edges > 0.80)
    tight |= (same_edges > 0.62) & (same_mask > 0.93)
    wide = tight | (distance < np.minimum(0.09, 0.35 * contrast)) | (same_edges > 0.72) | (mirrored > 0.70)
    wide |= (same_edges > 0.60) & (same_mask > 0.88)
    wide |= (same_edges > 0.50) & (same_mask > 0.84) & (distance < 0.45 * contrast)
    series = [(p.category, p.series) for p in images]
    for p, t, w in zip(images, components(tight, series), components(wide, series)):
        p.tight, p.group = t, w


def hash_of(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def thin(images):
    """Keep of each group the members that differ visibly from those kept before, colourful ones first, GROUP_CAP at most."""
    groups = collections.defaultdict(list)
    for p in images:
        groups[p.tight].append(p)
    kept = []
    for members in groups.values():
        members.sort(key=lambda p: (not p.is_colour, hash_of(p.path)))
        mine = []
        for p in members:
            twin = any(np.sqrt(((p.thumb - q.thumb) ** 2).mean()) < TWIN[0] or p.edges @ q.edges > TWIN[1] for q in mine)
            if len(mine) < GROUP_CAP and not twin:
                mine.append(p)
        kept += mine
    return sorted(kept, key=lambda p: p.path)


def choose(images, grey):
    """At most `grey` images without colour, those with most substance first, and no category over its cap."""
    shaded = sorted((p for p in images if not p.is_colour), key=lambda p: (-round(p.substance, 3), p.path))[:grey]
    allowed = {id(p) for p in shaded}
    by_class = collections.defaultdict(list)
    for p in images:
        if p.is_colour or id(p) in allowed:
            by_class[p.category].append(p)
    chosen = []
    for members in by_class.values():
        members.sort(key=lambda p: (not p.is_colour, hash_of(p.path)))
        chosen += members[: CAP["train"] + CAP["val"]]
    return sorted(chosen, key=lambda p: p.path)


def split(images, share):
    """Whole groups to validation, in hash order, until each category has its share there."""
    by_group = collections.defaultdict(list)
    for p in images:
        by_group[p.group].append(p)
    total = collections.Counter(p.category for p in images)
    want = {}
    for c, n in total.items():
        want[c] = min(CAP["val"], max(FLOOR["val"], round(share * n), n - CAP["train"]))
    have = collections.Counter()
    for p in images:
        p.side = "train"
    for g in sorted(by_group, key=lambda g: hash_of(by_group[g][0].path + "split")):
        count = collections.Counter(p.category for p in by_group[g])
        if len(by_group[g]) <= 6 and all(have[c] + k <= want[c] for c, k in count.items()):
            have.update(count)
            for p in by_group[g]:
                p.side = "val"
    out = []
    for c in sorted(total):
        train = [p for p in images if p.category == c and p.side == "train"]
        train.sort(key=lambda p: (not p.is_colour, hash_of(p.path)))
        out += train[: CAP["train"]] + [p for p in images if p.category == c and p.side == "val"]
    return sorted(out, key=lambda p: p.path)


def encode(image, quality):
    best = None
    for options in ({"quality": quality}, {"lossless": True, "quality": 70}):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", method=4, **options)
        if best is None or len(buffer.getvalue()) < len(best):
            best = buffer.getvalue()
    return best


def interleave(images):
    """A fixed order in which every stretch holds the categories in their overall proportion."""
    place = {}
    for c in {p.category for p in images}:
        members = sorted((p for p in images if p.category == c), key=lambda p: hash_of(p.path + "order"))
        for i, p in enumerate(members):
            place[p.path] = (i + (hash_of(c) % 1000 + 0.5) / 1000) / len(members)
    return sorted(images, key=lambda p: place[p.path])


def add(tar, name, data):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))


def write_shards(images, prefix, classes, per_shard, quality):
    names = []
    for start in range(0, len(images), per_shard):
        names.append(f"{prefix}-{start // per_shard:03d}.tar")
        with tarfile.open(names[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            add(tar, "classes.txt", "".join(c + "\n" for c in classes).encode())
            for p in images[start : start + per_shard]:
                add(tar, p.key + ".webp", encode(p.image, quality))
                add(tar, p.key + ".cls", str(classes.index(p.category)).encode())
        # tarfile pads to 10 KiB; two zero blocks are what the format asks for.
        with open(names[-1], "rb+") as f:
            data = f.read().rstrip(b"\0")
            end = (len(data) + 511) // 512 * 512 + 1024
            f.truncate(end)
    return names


def read_back(names, classes):
    found = {}
    for name in names:
        with tarfile.open(name) as tar:
            members = tar.getmembers()
            assert members[0].name == "classes.txt" and all(m.mtime == 0 and m.uid == 0 for m in members), name
            assert tar.extractfile(members[0]).read().decode().split() == classes, name
            for image, label in zip(members[1::2], members[2::2]):
                key = image.name.removesuffix(".webp")
                assert label.name == key + ".cls" and key not in found, key
                index = int(tar.extractfile(label).read())
                assert classes[index] == key.split("/")[0], key
                image = Image.open(io.BytesIO(tar.extractfile(image).read())).convert("RGB")
                found[key] = (index, image)
    return found


def knn(train, val, k=10):
    """Top-1 of k nearest neighbours by cosine on 32 x 32 RGB pixels, and the share of the largest class."""

    def features(found):
        x = np.stack([np.asarray(im.resize((32, 32), Image.BICUBIC), np.float32).ravel() for _, im in found.values()])
        return x, np.array([i for i, _ in found.values()])

    (x, y), (u, v) = features(train), features(val)
    mean = x.mean(axis=0)
    out = {}
    for name, a, b in (("pixels", x, u), ("centred pixels", x - mean, u - mean)):
        a = a / np.linalg.norm(a, axis=1, keepdims=True)
        b = b / np.linalg.norm(b, axis=1, keepdims=True)
        sim = b @ a.T
        near = np.argsort(-sim, axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(b), y.max() + 1))
        for j in range(k):
            weight = np.exp(sim[np.arange(len(b)), near[:, j]] / 0.07)
            np.add.at(votes, (np.arange(len(b)), y[near[:, j]]), weight)
        out[name] = float((votes.argmax(axis=1) == v).mean())
    out["majority"] = float((v == np.bincount(y).argmax()).mean())
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="where the package was unpacked, or its usr/share/openclipart/png")
    parser.add_argument("target", help="folder for the shards")
    parser.add_argument("--side", type=int, default=112, help="longer side in pixels")
    parser.add_argument("--short", type=int, default=96, help="shorter side at least, by white padding")
    parser.add_argument("--grey", type=int, default=620, help="images without colour, at most")
    parser.add_argument("--quality", type=int, default=80, help="WebP quality where lossless is not smaller")
    parser.add_argument("--val-share", type=float, default=0.163)
    parser.add_argument("--per-shard", type=int, default=1250)
    parser.add_argument("--listing", help="also write `side group key source-path` of every usable image to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = None

    root = os.path.join(args.source, "usr/share/openclipart/png")
    root = root if os.path.isdir(root) else args.source
    images, reasons = read_images(root, args.side, args.short)
    if not images:
        sys.exit(f"{root}: no images of openclipart-png found there; unpack the package with `dpkg -x` first")
    print(f"{len(images)} usable images; left out: " + ", ".join(f"{n} {r}" for r, n in reasons.most_common()))
    group(images)
    kept = thin(images)
    chosen = split(choose(kept, args.grey), args.val_share)
    print(f"{len(kept)} after thinning near-duplicates, {len(chosen)} chosen, "
          f"{sum(not p.is_colour for p in chosen)} of them without colour")

    classes = sorted(CATEGORIES)
    number = collections.Counter()
    for p in chosen:
        stem = re.sub(r"[^a-z0-9]+", "_", os.path.splitext(os.path.basename(p.path))[0].lower()).strip("_")[:28]
        number[p.category] += 1
        p.key = f"{p.category}/{stem.strip('_')}_{number[p.category]:03d}"
    os.makedirs(args.target, exist_ok=True)
    shards = {}
    for side in ("train", "val"):
        members = interleave([p for p in chosen if p.side == side])
        shards[side] = write_shards(members, os.path.join(args.target, side), classes, args.per_shard, args.quality)
    if args.listing:
        with open(args.listing, "w") as f:
            for p in sorted(images, key=lambda p: p.path):
                side, key = (p.side, p.key) if hasattr(p, "key") else ("unused", "-")
                f.write(f"{side}\t{p.group}\t{key}\t{p.path}\n")

    train, val = (read_back(shards[side], classes) for side in ("train", "val"))
    size = sum(os.path.getsize(n) for ns in shards.values() for n in ns)
    print("\n| class | train | val |\n|---|---:|---:|")
    rows = [(c, *(sum(i == k for i, _ in part.values()) for part in (train, val))) for k, c in enumerate(classes)]
    for c, a, b in rows:
        print(f"| {c} | {a} | {b} |")
    print(f"| **all** | **{len(train)}** | **{len(val)}** |\n")
    for ns in shards.values():
        for n in ns:
            print(f"{n}: {os.path.getsize(n):,} bytes, sha256 {hashlib.sha256(Path(n).read_bytes()).hexdigest()}")
    print("top-1: " + ", ".join(f"{k} {v:.3f}" for k, v in knn(train, val).items()))

    sides = {}
    for p in chosen:
        assert sides.setdefault(p.group, p.side) == p.side, f"group of {p.path} on both sides"
    assert not set(train) & set(val)
    assert all(args.short <= s <= args.side for part in (train, val) for _, im in part.values() for s in im.size)
    failed = [f"{c}: {a} + {b} images" for c, a, b in rows if a < FLOOR["train"] or b < FLOOR["val"]]
    failed += [f"{c}: over the cap" for c, a, b in rows if a > CAP["train"] or b > CAP["val"]]
    if len(train) < 2000 or len(val) < 400:
        failed.append(f"{len(train)} + {len(val)} images; 2000 + 400 are wanted")
    if size > 10_000_000:
        failed.append(f"{size:,} bytes; 10 MB is the limit")
    print(f"total {size:,} bytes; " + ("all checks hold" if not failed else "FAILED: " + "; ".join(failed)))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
