"""The photographs behind the scenes of make_segment_scenes.py: author, licence and side, and random crops.

Chosen by eye from Debian packages of wallpapers and templates: real photographs without prominent things of the scenes'
classes (animals, people, buildings, vehicles …). Licences are those of the packages' copyright files and metadata.
"""
import os
from dataclasses import dataclass

from PIL import Image, ImageOps

LONGEST = 2048  # pixels; larger photographs are reduced when they are read

BARBIN, SAUKONPAA = "Charles Barbin", "Risto Saukonpää"
KENDRICK, BERASATEGI = "Bill Kendrick", "Aitzol Berasategi"
# package -> (folder, licence, [(file, author)]); a licence in a third place replaces the package's.
PACKAGES = {
    "tuxpaint-data": ("usr/share/tuxpaint/templates", "GPL-2+", [
        ("burnt_bark.jpg", KENDRICK), ("cliff.jpg", KENDRICK), ("corn_maze.jpg", KENDRICK),
        ("mossy_bark.jpg", KENDRICK), ("mossy_log.jpg", KENDRICK), ("mudstone.jpg", KENDRICK),
        ("ocean_splash.jpg", KENDRICK), ("ocean_waves.jpg", KENDRICK), ("redwoods_above.jpg", KENDRICK),
        ("rocks.jpg", KENDRICK), ("sun_behind_clouds.jpg", KENDRICK), ("sun_behind_leaves.jpg", KENDRICK),
        ("trees_above.jpg", KENDRICK), ("trees_at_dusk.jpg", KENDRICK)]),
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature", "GPL-2+", [
        ("Aqua.jpg", BARBIN), ("Blinds.jpg", "Lennart Poettering, Andrea Cimitan"),
        ("Dune.jpg", "Marco Cogoni, Hylke Bons"), ("FreshFlower.jpg", "Jens Ansorg"), ("Garden.jpg", BARBIN),
        ("GreenMeadow.jpg", "Timothy Schellhase, Lapo Calamandrei"), ("RainDrops.jpg", "blackcombwhistler07"),
        ("Storm.jpg", "Sergey Nazarov"), ("TwoWings.jpg", "Charles Barbin, Hylke Bons"),
        ("Wood.jpg", "Jean-François Fortin Tam"), ("YellowFlower.jpg", BARBIN)]),
    "lomiri-wallpapers-16.04": ("usr/share/backgrounds", "CC-BY-4.0", [
        ("Bridge_by_Sander_Klootwijk.jpg", "Sander Klootwijk", "CC-BY-SA-4.0"),
        ("aitzgorri_by_Aitzol_Berasategi.jpg", BERASATEGI), ("life_by_Aitzol_Berasategi.jpg", BERASATEGI),
        ("picosdeeuropa_by_Aitzol_Berasategi.jpg", BERASATEGI),
        ("seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt", "CC0-1.0"),
        ("sunset_by_Aitzol_Berasategi.jpg", BERASATEGI)]),
    "plasma-workspace-wallpapers": ("usr/share/wallpapers", "LGPL-3", [
        ("BytheWater/contents/images/2560x1600.jpg", "Maciej Wiklo"),
        ("ColdRipple/contents/images/2560x1600.jpg", SAUKONPAA),
        ("DarkestHour/contents/images/2560x1600.jpg", SAUKONPAA),
        ("FallenLeaf/contents/images/2560x1600.jpg", "Martin Klapetek"),
        ("Kite/contents/images/2560x1600.jpg", SAUKONPAA),
        ("OneStandsOut/contents/images/2560x1600.jpg", SAUKONPAA),
        ("Path/contents/images/2560x1600.jpg", SAUKONPAA),
        ("summer_1am/contents/images/2560x1600.jpg", SAUKONPAA)]),
}
# For validation, none of them of the same place as a training photograph.
VALIDATION = {"cliff", "corn_maze", "mudstone", "trees_at_dusk", "Dune", "YellowFlower", "Storm",
              "sunset_by_Aitzol_Berasategi", "OneStandsOut", "Path"}
# Parts to use, as shares of width and height: left, top, right, bottom. What is cut off has black bars.
PARTS = {"mossy_bark": (0, 0.08, 1, 0.92)}


@dataclass
class Photograph:
    name: str
    package: str
    author: str
    licence: str
    side: str
    image: Image.Image


def read_photographs(packages):
    photographs = []
    for package, (folder, licence, entries) in PACKAGES.items():
        for file, author, *other in entries:
            name = os.path.splitext(file.split("/")[0])[0]
            image = Image.open(os.path.join(packages, package, folder, file))
            image.draft("RGB", (LONGEST, LONGEST))
            box = [round(share * side) for share, side in zip(PARTS.get(name, (0, 0, 1, 1)), 2 * image.size)]
            image = image.convert("RGB").crop(box)
            image.thumbnail((LONGEST, LONGEST), Image.LANCZOS)
            side = "val" if name in VALIDATION else "train"
            photographs.append(Photograph(name, package, author, other[0] if other else licence, side, image))
    return photographs


def crop(photograph, size, rng):
    """A random part of the photograph of the wanted shape, between a third and all of what fits, as `size`."""
    image = photograph.image
    fits = min(image.width / size[0], image.height / size[1])
    scale = fits * rng.uniform(0.34, 1)
    width, height = (min(round(s * scale), limit) for s, limit in zip(size, image.size))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    part = image.resize(size, Image.LANCZOS, (left, top, left + width, top + height))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part
