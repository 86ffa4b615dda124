"""Samples a synthetic patient on a grid: image in HU, and the label that goes with it."""

from __future__ import annotations

import numpy as np

from scripts.prepare.phantom_anatomy import EXTENT_MM, SPINE_Y, Anatomy
from scripts.prepare.phantom_shapes import Blob, Canvas, Ellipsoid, Grid, Region, smooth_noise

LABELS = {0: "background", 1: "liver", 2: "tumour", 3: "portal vein", 4: "abdominal aorta"}
# Typical HU of enhanced abdominal CT; `nodule` is above the liver's. `post`: after TACE, iodised oil in the tumours.
HU = {
    "portal": {"liver": 100, "vessel": 165, "aorta": 175, "spleen": 120, "kidney": 180, "tumour": 67, "nodule": 25},
    "arterial": {"liver": 70, "vessel": 85, "aorta": 300, "spleen": 130, "kidney": 170, "tumour": 85, "nodule": 30},
    "post": {"liver": 98, "vessel": 155, "aorta": 165, "spleen": 118, "kidney": 175, "tumour": 350, "nodule": 25},
}
_PLAIN = {"stomach": 25, "gallbladder": 8, "bowel": 35}  # not enhanced


def render(
    anatomy: Anatomy,
    grid: Grid,
    rng: np.random.Generator,
    *,
    malignant: bool,
    phase: str = "portal",
    noise: float = 12.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples a patient on a grid.

    Args:
        anatomy: the patient.
        grid: where to sample.
        rng: source of the noise and the texture.
        malignant: whether the indeterminate nodules are tumour. Changes the label only, never the image.
        phase: a key of ``HU``.
        noise: standard deviation of the noise in HU.

    Returns:
        tuple: image int16 (X, Y, Z) in HU, label uint8 (X, Y, Z) with the values of ``LABELS``.
    """
    canvas, hu, shift = Canvas(grid), HU[phase], anatomy.shift
    liver_hu = hu["liver"] + shift["liver"]
    _paint_trunk(canvas, anatomy)
    _paint_organs(canvas, anatomy, hu)
    liver = canvas.paint(anatomy.liver_box(), anatomy.liver, liver_hu)
    canvas.texture(rng, liver, 4.0, smooth_mm=6.0)
    _paint_lungs(canvas, anatomy)
    canvas.shape(anatomy.cava, hu["vessel"] - 45)
    for tube in anatomy.hepatic:
        canvas.shape(tube, hu["vessel"] - 20 + shift["vessel"])
    portal = [canvas.shape(tube, hu["vessel"] + shift["vessel"]) for tube in anatomy.portal]
    aorta = [canvas.shape(tube, hu["aorta"] + shift["vessel"]) for tube in anatomy.aorta]
    tumours = [_paint_tumour(canvas, blob, hu["tumour"] + shift["tumour"], rng) for blob in anatomy.tumours]
    nodules = [_paint_nodule(canvas, blob, liver_hu + hu["nodule"] + shift["nodule"]) for blob in anatomy.nodules]
    canvas.hu += smooth_noise(rng, grid.shape, (0.6, 0.6, 0), noise)

    label = np.zeros(grid.shape, np.uint8)
    for value, regions in ((1, [liver]), (3, portal), (4, aorta), (2, tumours), (2 if malignant else 1, nodules)):
        for region in regions:
            region.fill(label, value)
    return np.rint(canvas.hu).clip(-1024, 3071).astype(np.int16), label


def _paint_tumour(canvas: Canvas, blob: Blob, value: float, rng: np.random.Generator) -> Region:
    region = canvas.shape(blob, value)
    if blob.necrotic:
        canvas.shape(blob.scaled(blob.radius * 0.5), value - 25)
    canvas.texture(rng, region, 9.0, smooth_mm=3.5)
    return region


def _paint_nodule(canvas: Canvas, blob: Blob, value: float) -> Region:
    region = canvas.shape(blob, value + 22)  # the capsule, a thin bright rim
    canvas.shape(blob.scaled(blob.radius - max(2.5, canvas.edge)), value)
    return region


def _paint_organs(canvas: Canvas, anatomy: Anatomy, hu: dict[str, int]) -> None:
    for name, organ in anatomy.organs.items():
        kind = name.split()[0]
        canvas.shape(organ, _PLAIN.get(kind) or hu[kind])
        if kind in ("stomach", "bowel"):  # gas rises to the front
            canvas.shape(Ellipsoid(organ.centre - [0, organ.radii[1] * 0.45, 0], organ.radii * 0.45), -850)


def _paint_trunk(canvas: Canvas, anatomy: Anatomy) -> None:
    """The table, skin, fat, muscle, ribs and spine."""
    a, b = anatomy.body
    top = EXTENT_MM

    def shell(value: float, inset: float) -> None:
        canvas.paint(
            (np.array([-a, -b, -top]), np.array([a, b, top])),
            lambda x, y, z: (np.sqrt((x / (a - inset)) ** 2 + (y / (b - inset)) ** 2) - 1) * (b - inset),
            value,
        )

    def column(value: float, low: tuple[float, float], high: tuple[float, float], distance) -> None:  # noqa: ANN001
        canvas.paint((np.array([*low, -top]), np.array([*high, top])), distance, value)

    def ribs(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        depth = abs(anatomy.cavity(x, y) - 6) - 4
        return np.maximum(np.maximum(depth, abs((z + 0.45 * y + 300) % 34 - 17) - 5), -(y + 75))  # sloping to the front

    column(-300, (-190, b + 4), (190, b + 18), lambda x, y, z: abs(y - b - 10) - 4)  # the table
    shell(20, 0)  # skin
    shell(-100, 2.5)  # fat under it
    shell(55, anatomy.wall)  # muscle
    column(-85, (-a, -b), (a, b), lambda x, y, z: anatomy.cavity(x, y))  # fat around the organs
    for side in (-34, 34):  # muscles beside the spine
        column(
            58,
            (side - 30, 62),
            (side + 30, 100),
            lambda x, y, z, s=side: (np.sqrt(((x - s) / 27) ** 2 + ((y - 76) / 20) ** 2) - 1) * 20,
        )
    column(320, (-a, -b), (a, b), ribs)
    column(
        190,
        (-24, 36),
        (24, 80),
        lambda x, y, z: np.sqrt(x**2 + ((y - SPINE_Y) * 1.12) ** 2) - 21 + 2.5 * np.cos(z * 2 * np.pi / 34),
    )  # vertebrae and discs
    column(260, (-8, 78), (8, 106), lambda x, y, z: np.maximum(abs(x) - 5, abs(y - 92) - 12))  # spinous processes
    column(30, (-10, 70), (10, 92), lambda x, y, z: np.sqrt(x**2 + (y - 82) ** 2) - 8)  # spinal canal


def _paint_lungs(canvas: Canvas, anatomy: Anatomy) -> None:
    a, b = anatomy.body

    def lungs(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        d = np.maximum(anatomy.cavity(x, y, margin=4), 0.7 * (anatomy.diaphragm(x, y) - z))
        heart = np.sqrt(((x - 18) / 52) ** 2 + ((y + 30) / 46) ** 2) - 1
        spine = np.sqrt(x**2 + (y - 50) ** 2) - 38
        return np.maximum(np.maximum(d, -40 * heart), -spine)

    canvas.paint((np.array([-a, -b, -45]), np.array([a, b, EXTENT_MM])), lungs, -850)
