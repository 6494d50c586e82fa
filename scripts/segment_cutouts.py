"""Cut-outs with alpha for make_segment_scenes.py: which files, which class, what is left out, which side.

A cut-out's class is the class of its folder in the Debian package (FOLDERS); the longest prefix wins, and single names
go elsewhere or nowhere (BY_HAND). Near-duplicates, mirrored and recoloured ones too, form a group. A group is wholly
training or wholly validation. Deterministic and independent of the scenes' seed.
"""
import collections
import io
import os

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

from make_quickstart_data import MAX_ASPECT, components, describe, group, hash_of, series_of, thin

STAMPS, STAMPS_ROOT = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"
CLIPART, CLIPART_ROOT = "openclipart-png", "usr/share/openclipart/png"

# Class -> (colour of the masks, folders below the roots). Background is class 0. Plants and clothes are left out:
# the photographs are full of plants, and the people wear clothes.
CLASSES = {
    "animal": ("#a0522d", ["stamps/animals/amphibians", "stamps/animals/dinosaur", "stamps/animals/lizards",
                           "stamps/animals/mammals", "stamps/animals/marsupials", "clipart/animals",
                           "clipart/animals/dinosaurs", "clipart/animals/mammals"]),
    "bird": ("#ffd700", ["stamps/animals/birds", "clipart/animals/birds"]),
    "sea animal": ("#1e90ff", ["stamps/animals/fish", "stamps/animals/mammals/aquatic", "stamps/animals/shellfish",
                               "clipart/animals/fish"]),
    "insect": ("#7cfc00", ["stamps/animals/insects", "clipart/animals/bugs"]),
    "fruit": ("#ff8c00", ["stamps/food/fruit", "stamps/food/vegetables", "stamps/food/nuts", "clipart/food/fruit",
                          "clipart/food/vegetables"]),
    "food": ("#e6194b", ["stamps/food", "clipart/food"]),
    "vehicle": ("#000075", ["stamps/vehicles", "stamps/military/vehicles", "clipart/transportation",
                            "clipart/transportation/boating", "clipart/transportation/vehicles"]),
    "building": ("#808000", ["stamps/town/cartoon", "stamps/town/houses", "clipart/buildings"]),
    "sign": ("#ff00ff", ["stamps/town/roadsigns", "clipart/transportation/roadsigns"]),
    "person": ("#ffc0cb", ["stamps/people", "clipart/people"]),
    "instrument": ("#911eb4", ["stamps/hobbies/music", "clipart/recreation/music"]),
    "electronics": ("#00ced1", ["stamps/household/electronics", "clipart/computer/hardware", "clipart/electronics",
                                "clipart/office/telephone"]),
}
LEFT_OUT = ["clipart/animals/fantasy", "clipart/buildings/furniture", "clipart/electronics/battery",
            "clipart/electronics/bulb", "clipart/people/bodypart", "clipart/people/clothing",
            "clipart/people/smilies", "clipart/people/stickmen", "stamps/food/spices", "stamps/people/body_parts",
            "stamps/town/flags"]
FOLDERS = {folder: name for name, (_, folders) in CLASSES.items() for folder in folders} | dict.fromkeys(LEFT_OUT)

# Single files (by the start of the path) that go elsewhere than their folder says; "" leaves them out.
BY_HAND = {}


def by_hand(name, folder, files):
    for file in files.split():
        BY_HAND[f"{folder}/{file}"] = name


by_hand("animal", "stamps/animals/mammals/aquatic", "otter")
by_hand("bird", "clipart/animals", "pinguino_col tux_head")
by_hand("sea animal", "clipart/animals", "crawfish seal_sek mammals/seal.png")
by_hand("fruit", "clipart/food", """apple_bitten apple_with_worm champignon pomodori pumpkin zucca
    breads_and_carbs/potato_nicu""")
by_hand("food", "clipart/food", "fruit/juice_glass fruit/turkey_platter")
by_hand("food", "clipart/animals/birds", "turkey_on_platter")
by_hand("electronics", "stamps/hobbies", "camera_35mm")
by_hand("electronics", "clipart/recreation/music", "headphones CD_Player/")
by_hand("building", "clipart/transportation/vehicles", "lighthouse")
by_hand("sign", "stamps/vehicles/locomotive/cartoon", "trainSign")
by_hand("sign", "clipart/transportation", """Evel_Knievel Motorway_on airplane bambi bus_lane bus_opposite
    buses_and_bikes cattle crosswind cycle_lane cycles drawbridge end_daul grounded horse kaboom lorry_length no_cycles
    no_entry old_folks pass_either vehicles/crossroads vehicles/curve_ahead vehicles/cycle_lane
    vehicles/cycle_route""")
# Other things than the folder says, parts and pairs of things, scenes with a ground or sky, broken and nude drawings.
by_hand("", "stamps/animals", "birds/cartoon/penguin_with_spider insects/cartoon/wings")
by_hand("", "stamps/people", "cartoon/snowman")
by_hand("", "stamps/town", """cartoon/docks cartoon/fountain cartoon/mine cartoon/ruins cartoon/shipwreck
    cartoon/wishing_well houses/cartoon/cave_entrance roadsigns/traffic_cone""")
by_hand("", "stamps/vehicles", "7spoke256 bikewheel tyre_with_rim wheel_tractor")
by_hand("", "clipart/animals", """2_dead_frogs baby-tux bat_orlando cani_e_gatti cymru_flag lizard_guillaume lucchetto
    mascot_enrique mosquito red-eye_frog scorpion tante_orme tatoo three_eyes birds/cigni_bianchi birds/cigno_di_notte
    birds/contour_bat birds/duck_yellow_ii birds/mirjam_meijer birds/penguin/tux_didier birds/stormo birds/wing_
    fish/dolphin_01 fish/kallisti fish/paesaggio mammals/bears/sleeping_bear mammals/crazy_monkey mammals/horses/horse_
    mammals/housecats/cat_scrathing mammals/housecats/gatto_nero mammals/mhooo mammals/shaezy mammals/skoynk
    mammals/squeek""")
by_hand("", "clipart/buildings", """brick capitello demolizione factory_gabrielle houses_jon old_sign school_hallway
    wall homes/casa_in_campagna homes/chalet homes/factory_gabrielle homes/house_gabrielle""")
by_hand("", "clipart/computer/hardware", "laptop_01")
by_hand("", "clipart/electronics", "bobine capacitors diodes resist saku_robot transistor")
by_hand("", "clipart/food", """bowl_of_steam chef_jarno come_si food_leif honey large_plate libro_di
    meatgrinder menu_example mix_cucina picnic small_plate toque beverages/a_teapot beverages/alcohol/noi_due
    beverages/alcohol/wine_corks beverages/ice_cube beverages/icecube beverages/macchina_caffe fruit/tree_whit
    meats_and_eggs/fuoco""")
by_hand("", "clipart/people", """alien beach_trip blue_eye boy_symbol buddy camper car_ride don_t_panic eyes fire_engine
    girl_symbol hide_girl martin_luther maya_head ppl pregnancy sailing_kids sexy silhouette skull stripper
    stylized_yoga sub_subacqueo symbolic_boy van_gogh water_skier woman_eye""")
by_hand("", "clipart/recreation/music", """45_rpm double_ fifties_jukebox microphone_stand musical_note piano_theory
    simple_croche trumpet_harmon trumpet_straight vinyl_disc""")
by_hand("", "clipart/transportation", """anchor little_tan plane_in_the_sky street_sign boating/boating_rules
    boating/knot boating/sailing_ boating/sailboat_illustration_labels roadsigns/nws roadsigns/stop.png roadsigns/yield.png""")

# Files of one folder that share the first word of their names are a series; these too, by folder and part of the name.
SERIES = [("clipart/food/beverages", "juice_box"), ("clipart/food/desserts", "cone"),
          ("clipart/recreation/music", "guitar"), ("stamps/vehicles/locomotive/cartoon", "")]

SIDE = 256  # pixels of the longer side that are kept
MIN_SIDE = 48
OPAQUE = 0.97  # a cut-out that fills its box so far is an image with a frame
SEE_THROUGH = 0.25  # pixels neither opaque, clear nor shadow, as a share of those that count as drawn
MIN_SOLID = 0.3  # share of the shape that outlives two pixels of erosion at 128: thin drawings have less
MIN_TONE = 0.12  # shaded share of a drawing without colour: silhouettes and outlines have less
VAL_SHARE = 0.2


def class_of(path):
    named = max((start for start in BY_HAND if path.startswith(start)), key=len, default=None)
    if named is not None:
        return BY_HAND[named] or None
    folder = max((f for f in FOLDERS if path.startswith(f + "/")), key=len, default=None)
    return FOLDERS.get(folder)


def open_cutout(file):
    """The drawing cropped to what is not clear, longer side at most SIDE; or why it is none."""
    if file.endswith(".svg"):
        image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=file, width=2 * SIDE))))
    else:
        image = Image.open(file)
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return None, "no alpha"
    if image.width * image.height > 60_000_000:
        return None, "far too large"
    image = image.convert("RGBA")
    factor = max(image.size) // (2 * SIDE)
    if factor > 1:
        image = image.convert("RGBa").reduce(factor).convert("RGBA")
    drawn = np.asarray(image)[:, :, 3] >= 128
    if drawn.sum() < 200:
        return None, "empty"
    ys, xs = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    image = image.crop((xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))
    if max(image.size) < MIN_SIDE:
        return None, "too small"
    if max(image.size) > MAX_ASPECT * min(image.size):
        return None, "very long"
    scale = SIDE / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(s * scale)) for s in image.size], Image.LANCZOS)
    return image, None


def fault(image, name):
    """Why a drawing is no use as a cut-out, or None."""
    pixels = np.asarray(image)
    alpha, drawn = pixels[:, :, 3], pixels[:, :, 3] >= 128
    if drawn.mean() > OPAQUE and name != "sign":
        return "framed"
    if ((alpha > 12) & (alpha < 240) & (pixels[:, :, :3].max(axis=2) > 60)).sum() > SEE_THROUGH * drawn.sum():
        return "see-through"
    scale = 128 / max(image.size)
    shape = Image.fromarray(drawn).convert("L").resize([max(1, round(s * scale)) for s in image.size], Image.BOX)
    padded = Image.new("L", (shape.width + 4, shape.height + 4))
    padded.paste(shape.point(lambda v: 255 * (v >= 128)), (2, 2))
    solid = np.count_nonzero(np.asarray(padded.filter(ImageFilter.MinFilter(5))))
    if solid < MIN_SOLID * np.count_nonzero(np.asarray(padded)):
        return "thin"
    colours = pixels[drawn][:, :3].astype(np.float32) / 255
    chroma, grey = colours.max(axis=1) - colours.min(axis=1), colours.mean(axis=1)
    if (chroma > 0.1).mean() < 0.03 and ((grey > 0.15) & (grey < 0.9)).mean() < MIN_TONE:
        return "without colour or shade"
    if grey.std() < 0.03 and chroma.std() < 0.03:
        return "flat"
    return None


def candidates(packages):
    """(path, file, class) of every file that has a class, in order; path is `stamps/…` or `clipart/…`."""
    for short, package, root in (("stamps", STAMPS, STAMPS_ROOT), ("clipart", CLIPART, CLIPART_ROOT)):
        top = os.path.join(packages, package, root)
        for folder, folders, files in os.walk(top):
            folders.sort()
            for name in sorted(files):
                file = os.path.join(folder, name)
                stem, kind = os.path.splitext(name)
                twin = kind == ".svg" and os.path.exists(os.path.join(folder, stem + ".png"))
                twin = twin or "_mirror" in stem or "_bw" in stem  # mirrored or uncoloured
                if kind not in (".png", ".svg") or os.path.islink(file) or twin:
                    continue
                path = f"{short}/{os.path.relpath(file, top)}"
                if class_of(path):
                    yield path, file, class_of(path)


def read_cutouts(packages):
    """All usable cut-outs with class, group and side, and how many files were left out for which reason."""
    Image.MAX_IMAGE_PIXELS = None  # open_cutout has its own limit
    cutouts, reasons = [], collections.Counter()
    for path, file, name in candidates(packages):
        try:
            image, why = open_cutout(file)
        except ValueError:  # of resvg: no size, or no SVG
            image, why = None, "unreadable"
        why = why or fault(image, name)
        if why:
            reasons[why] += 1
            continue
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        p = describe(white.convert("RGB"))
        p.path, p.category, p.image, p.series, p.is_colour = path, name, image, series_of(path), p.colour > 0.01
        cutouts.append(p)
    group(cutouts)
    kept = thin(cutouts)
    reasons["copies"] += len(cutouts) - len(kept)
    join_series(kept)
    split(kept)
    return kept, reasons


def join_series(cutouts):
    """Widens the groups by what only the names tell: drawings that share their frame, body or cone."""
    keys = []
    for p in cutouts:
        folder, name = os.path.split(p.path)
        word = (p.series.split() or [""])[0]
        mine = [("group", p.group), ("word", folder, word) if len(word) > 3 else ("file", p.path)]
        mine += [("series", i) for i, (start, part) in enumerate(SERIES) if p.path.startswith(start) and part in name]
        keys.append(mine)
    number = {key: i for i, key in enumerate(sorted({key for mine in keys for key in mine}, key=str))}
    has = np.zeros((len(cutouts), len(number)), np.float32)
    for i, mine in enumerate(keys):
        has[i, [number[key] for key in mine]] = 1
    for p, g in zip(cutouts, components(has @ has.T > 0, [("", "")] * len(cutouts))):
        p.group = g


def split(cutouts):
    """Sets the side: whole groups to validation, in hash order, until each class has its share there."""
    groups = collections.defaultdict(list)
    for p in cutouts:
        groups[p.group].append(p)
    want = {c: round(VAL_SHARE * n) for c, n in collections.Counter(p.category for p in cutouts).items()}
    have = collections.Counter()
    for members in sorted(groups.values(), key=lambda g: hash_of(g[0].path)):
        count = collections.Counter(p.category for p in members)
        fits = all(have[c] + n <= want[c] and n <= max(2, want[c] // 4) for c, n in count.items())
        for p in members:
            p.side = "val" if fits else "train"
        if fits:
            have.update(count)
