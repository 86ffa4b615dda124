"""What the labels are in SNOMED CT, and their colours, so that a DICOM segmentation means the same elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from pydicom.sr.coding import Code
from skimage.color import lab2rgb, rgb2lab

ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Meaning:
    """What a label is: category, type and side as codes, and the colour that viewers should show it in (0 to 255)."""

    category: Code
    kind: Code
    colour: Colour
    side: Code | None = None


def _anatomy(value: str, meaning: str, colour: Colour) -> Meaning:
    return Meaning(ANATOMY, Code(value, "SCT", meaning), colour)


def _abnormal(value: str, meaning: str, colour: Colour) -> Meaning:
    return Meaning(ABNORMAL, Code(value, "SCT", meaning), colour)


# the colours of neighbours differ; those of organs are close to 3D Slicer's
MEANINGS = {
    "liver": _anatomy("10200004", "Liver", (221, 130, 101)),
    "mass": _abnormal("4147007", "Mass", (144, 238, 144)),
    "lesion": _abnormal("52988006", "Lesion", (250, 250, 90)),
    "enhancing tumour": _abnormal("108369006", "Neoplasm", (180, 120, 240)),
    "cyst": _abnormal("367643001", "Cyst", (205, 205, 100)),
    "necrosis": _abnormal("6574001", "Necrosis", (216, 191, 216)),
    "edema": _abnormal("79654002", "Edema", (140, 224, 228)),
    "portal vein": _anatomy("32764006", "Portal Vein", (0, 151, 206)),
    "hepatic vein": _anatomy("8993003", "Hepatic Vein", (50, 100, 220)),
    "splenic vein": _anatomy("35819009", "Splenic Vein", (90, 120, 240)),
    "inferior vena cava": _anatomy("64131007", "Inferior Vena Cava", (0, 100, 170)),
    "aorta": _anatomy("15825003", "Aorta", (224, 60, 50)),
    "abdominal aorta": _anatomy("7832008", "Abdominal aorta", (224, 60, 50)),
    "heart": _anatomy("80891009", "Heart", (206, 110, 84)),
    "left atrium": _anatomy("82471001", "Left atrium", (203, 108, 181)),
    "right atrium": _anatomy("73829009", "Right Atrium", (110, 150, 220)),
    "left ventricle": _anatomy("87878005", "Left Ventricle", (216, 72, 62)),
    "right ventricle": _anatomy("53085002", "Right ventricle", (72, 118, 216)),
    "myocardium": _anatomy("49848007", "Left Ventricle Myocardium", (242, 206, 108)),
    "spleen": _anatomy("78961009", "Spleen", (157, 108, 162)),
    "kidney": _anatomy("64033007", "Kidney", (185, 102, 83)),
    "adrenal gland": _anatomy("23451007", "Adrenal gland", (249, 186, 150)),
    "pancreas": _anatomy("15776009", "Pancreas", (249, 180, 111)),
    "gallbladder": _anatomy("28231008", "Gallbladder", (139, 150, 98)),
    "stomach": _anatomy("69695003", "Stomach", (216, 132, 105)),
    "duodenum": _anatomy("38848004", "Duodenum", (255, 253, 229)),
    "esophagus": _anatomy("32849002", "Esophagus", (211, 171, 143)),
    "colon": _anatomy("71854001", "Colon", (204, 168, 143)),
    "bladder": _anatomy("89837001", "Bladder", (222, 154, 132)),
    "prostate": _anatomy("41216001", "Prostate", (230, 158, 140)),
    "lung": _anatomy("39607008", "Lung", (197, 165, 145)),
    "brain": _anatomy("12738006", "Brain", (250, 250, 225)),
}
# other names of the same, among them those of the collections that we prepare
ALIASES = {
    "tumour": "mass",
    "tumor": "mass",
    "tumor mass": "mass",
    "lv": "left ventricle",
    "rv": "right ventricle",
    "la": "left atrium",
    "ra": "right atrium",
    "myo": "myocardium",
    "enhancing tumor": "enhancing tumour",
    "necrotic core": "necrosis",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "urinary bladder": "bladder",
    "gall bladder": "gallbladder",
}
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def meaning_of(name: str) -> Meaning:
    """The meaning of a label; one that no code is known for gets a private code of its own, never another's.

    Args:
        name: the label's name, in any case.
    """
    known = canonical(name)
    if known in MEANINGS:
        return MEANINGS[known]
    side, _, organ = known.partition(" ")
    if side in SIDES and canonical(organ) in MEANINGS:
        found = MEANINGS[canonical(organ)]
        red, green, blue = found.colour
        return replace(found, side=SIDES[side], colour=found.colour if side == "left" else (red, blue, green))
    digest = hashlib.sha256(known.encode()).hexdigest()
    return Meaning(ANATOMY, Code(digest[:12].upper(), "99NNY", name[:64]), PALETTE[int(digest, 16) % len(PALETTE)])


def canonical(name: str) -> str:
    """A label's name as in `MEANINGS`: lower case, single blanks, one of several names for the same."""
    plain = " ".join(name.lower().replace("_", " ").split())
    return ALIASES.get(plain, plain)


def value_of(names: tuple[str, ...], values: Mapping[str, int]) -> int | None:
    """The value of a segment.

    Args:
        names: what the segment is called, the label first, then description and coded type.
        values: value by name of our labels.

    Returns:
        The value of the first name that is one of our labels; None when none is.
    """
    ours = {name.lower(): value for name, value in values.items()}
    same = {canonical(name): value for name, value in values.items()}
    for name in names:
        value = ours.get(name.lower(), same.get(canonical(name)))
        if value is not None:
            return value
    return None


def lab_of(colour: Colour) -> list[int]:
    """A colour as DICOM stores it: CIELab in three 16-bit numbers."""
    lightness, a, b = rgb2lab(np.array(colour, float) / 255)
    scaled = (lightness / 100, (a + 128) / 255, (b + 128) / 255)
    return [int(round(min(max(value, 0.0), 1.0) * 65535)) for value in scaled]


def rgb_of(lab: list[int]) -> Colour:
    """The inverse of `lab_of`."""
    lightness, a, b = (value / 65535 for value in lab)
    rgb = lab2rgb(np.array([lightness * 100, a * 255 - 128, b * 255 - 128]))
    red, green, blue = (int(round(float(value) * 255)) for value in rgb)
    return red, green, blue
