"""Draws the organs and lesions of a synthetic patient, in millimetres; ``phantom_render`` samples them on a grid.

A patient has *definite* tumours (darker than liver) and *indeterminate* nodules (a little brighter, with a capsule).
Whether the nodules are tumour cannot be told from their looks: only the clinical row knows (see ``phantom_clinical``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from scripts.prepare.phantom_shapes import Blob, Box, Ellipsoid, Grid, Tube

FIELD_OF_VIEW_MM = 384.0
EXTENT_MM = 200.0
SPINE_Y = 58.0
_DEFINITE_MM = ((28.0, 52.0), (25.0, 34.0))  # diameters of the first and, in half of the patients, a second tumour
_RATIO = (1.05, 1.45)  # volume of the indeterminate nodules per volume of the definite tumours
_MIN_NODULE_MM = 21.0


@dataclass
class Anatomy:
    """One patient.

    ``body`` holds the half axes of the trunk and ``wall`` the depth of its fat; ``waves`` (direction, phase, amount)
    dent the liver; ``dome`` is the top of the right diaphragm (x, y, z); ``shift`` moves the HU of a tissue; the rest
    are shapes.
    """

    body: tuple[float, float]
    wall: float
    lobes: tuple[Ellipsoid, Ellipsoid]
    waves: list[tuple[np.ndarray, float, float]]
    dome: tuple[float, float, float]
    portal: list[Tube]
    hepatic: list[Tube]
    aorta: list[Tube]
    cava: Tube
    organs: dict[str, Ellipsoid]
    shift: dict[str, float]
    tumours: list[Blob] = field(default_factory=list)
    nodules: list[Blob] = field(default_factory=list)

    def cavity(self, x: np.ndarray, y: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """Distance to ``margin`` mm inside the ribs."""
        a, b = self.body[0] - self.wall - 14 - margin, self.body[1] - self.wall - 10 - margin
        return (np.sqrt((x / a) ** 2 + (y / b) ** 2) - 1) * np.float32(min(a, b))

    def diaphragm(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Height z of the diaphragm in mm; the lungs are above it."""
        cx, cy, top = self.dome
        right = top - ((x - cx) ** 2 + (y - cy) ** 2) / 190
        left = top - 4 - ((x - 75) ** 2 + (y - cy) ** 2) / 190
        return np.maximum(np.maximum(right, left), -40)

    def liver(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance to the liver's surface: two lobes that flow into each other, under the ribs and the diaphragm."""
        a, b = (lobe.distance(x, y, z) for lobe in self.lobes)
        k = 14.0  # mm over which the lobes blend
        h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
        d = b + (a - b) * h - k * h * (1 - h)
        for direction, phase, amount in self.waves:
            d = d + 60 * amount * np.sin(x * direction[0] + y * direction[1] + z * direction[2] + phase)
        d = np.maximum(d, self.cavity(x, y, margin=3))
        d = np.maximum(d, 0.7 * (z - self.diaphragm(x, y) + 4))
        return np.maximum(
            d, 34 - np.sqrt(x**2 + ((y - SPINE_Y) * 1.1) ** 2)
        )  # clear of the spine and the great vessels

    def liver_box(self) -> Box:
        """Lowest and highest corner of the liver in mm."""
        lows, highs = zip(*(lobe.box() for lobe in self.lobes), strict=True)
        return np.min(lows, axis=0) - 12, np.max(highs, axis=0) + 12


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draws one patient.

    Args:
        rng: source of randomness; the same state gives the same patient.

    Returns:
        Anatomy: with 1-2 definite tumours (25-60 mm) and 1-3 indeterminate nodules (at least 20 mm) whose volume
        together is 1.0-1.5 times that of the definite ones.
    """
    u = rng.uniform
    size = u(0.93, 1.07)

    def organ(centre: tuple[float, ...], radii: tuple[float, ...], move: float = 5.0, vary: float = 0.08) -> Ellipsoid:
        middle = np.array(centre, np.float32) + rng.normal(0, move, 3).clip(-9, 9)
        return Ellipsoid(middle, np.array(radii, np.float32) * size * u(1 - vary, 1 + vary, 3))

    lobes = organ((-63, -4, 2), (72, 74, 76)), organ((12, -40, 22), (66, 32, 36))
    waves = [(rng.normal(0, 1, 3) / u(45, 90), u(0, 2 * np.pi), u(0.02, 0.06)) for _ in range(6)]
    portal = _portal_tree(rng)
    confluence = np.array([-18, 26, u(52, 60)], np.float32)
    hepatic = [
        Tube(confluence, confluence + u(low, high), 4.0, 2.5)
        for low, high in (((-85, -25, -60), (-65, 5, -40)), ((-35, -75, -50), (-10, -55, -30)))
    ]
    aorta_x, aorta_y = u(6, 14), SPINE_Y - u(30, 33)
    knots = [np.array([aorta_x + rng.normal(0, 2), aorta_y + rng.normal(0, 2), z]) for z in (-140, -50, 30, 140)]
    calibre = u(8.5, 11.0)
    organs = {
        "spleen": organ((100, 32, 28), (30, 44, 46)),
        "kidney right": organ((-66, 46, -62), (26, 24, 50)),
        "kidney left": organ((68, 46, -48), (26, 24, 50)),
        "stomach": organ((64, -30, 36), (46, 36, 40)),
        "gallbladder": organ((-42, -46, -48), (15, 15, 28)),
        "bowel 1": organ((30, -48, -62), (48, 28, 30), move=9, vary=0.2),
        "bowel 2": organ((-40, -40, -92), (44, 34, 26), move=9, vary=0.2),
    }
    shift = {name: float(rng.normal(0, by)) for name, by in (("liver", 6), ("tumour", 4), ("nodule", 3), ("vessel", 8))}
    anatomy = Anatomy(
        body=(166 * size * u(0.97, 1.05), 116 * size * u(0.95, 1.06)),
        wall=u(14, 26),
        lobes=lobes,
        waves=waves,
        dome=(u(-75, -60), u(-15, 5), u(66, 76)),
        portal=portal,
        hepatic=hepatic,
        aorta=[Tube(a, b, calibre, calibre) for a, b in zip(knots[:-1], knots[1:], strict=True)],
        cava=Tube(np.array([-20, 30, -140.0]), confluence, 10.5, 10.0),
        organs=organs,
        shift=shift,
    )
    place_lesions(anatomy, rng)
    return anatomy


def _portal_tree(rng: np.random.Generator) -> list[Tube]:
    """The trunk (first four tubes: two of the trunk, the right and the left branch), then smaller branches."""
    u = rng.uniform
    hilum = np.array([-28, 2, 2], np.float32) + rng.normal(0, 4, 3)
    right, left = hilum + [-42, u(-8, 12), u(2, 18)], hilum + [u(24, 38), u(-46, -34), u(14, 28)]
    start = np.array([u(4, 12), u(14, 22), hilum[2] - u(34, 44)])
    middle = (start + hilum) / 2 + rng.normal(0, 4, 3)
    tree = [
        Tube(start, middle, 7.5, 7.5),
        Tube(middle, hilum, 7.5, 7.0),
        Tube(hilum, right, 6.5, 5.0),
        Tube(hilum, left, 6.0, 4.0),
    ]
    for low, high in (((-28, -30, -34), (-12, 26, -8)), ((-28, -26, 8), (-8, 24, 34))):
        tree.append(Tube(right, right + u(low, high), 4.0, 2.5))
    return tree


def place_lesions(anatomy: Anatomy, rng: np.random.Generator, tries: int = 60) -> None:
    """Draws the lesions' sizes and packs them into the liver, clear of each other, its surface and the portal trunk.

    Args:
        anatomy: receives ``tumours`` and ``nodules``.
        rng: source of randomness.
        tries: how many sets of sizes to try, ever smaller ones.

    Raises:
        RuntimeError: nothing fitted.
    """
    coarse = Grid((64, 52, 40), (5.0, 5.0, 5.0))
    x, y, z = np.meshgrid(*coarse.axes(), indexing="ij", sparse=True)
    liver = np.broadcast_to(anatomy.liver(x, y, z) < 0, coarse.shape)
    depth = ndimage.distance_transform_edt(liver, sampling=coarse.spacing)
    vessels = np.minimum.reduce([tube.distance(x, y, z) for tube in anatomy.portal[:4] + anatomy.aorta])
    for attempt in range(tries):
        definite, indeterminate = _draw_radii(rng, shrink=max(0.75, 1 - 0.01 * attempt))
        if min(indeterminate) < _MIN_NODULE_MM / 2:
            continue
        radii = definite + indeterminate
        centres = _pack(coarse, depth, vessels, radii, rng)
        if centres is None:
            continue
        blobs = [
            Blob(c, r, tuple(rng.uniform(0, 2 * np.pi, 3)), bool(rng.random() < 0.4))
            for c, r in zip(centres, radii, strict=True)
        ]
        anatomy.tumours, anatomy.nodules = blobs[: len(definite)], blobs[len(definite) :]
        return
    raise RuntimeError(f"no room for the lesions in this liver after {tries} tries; draw the cohort with another seed")


def _draw_radii(rng: np.random.Generator, shrink: float) -> tuple[list[float], list[float]]:
    """Radii in mm of the definite tumours and of the indeterminate nodules."""
    first, second = _DEFINITE_MM
    definite = [rng.uniform(*first) * shrink / 2]
    if rng.random() < 0.5:
        definite.append(rng.uniform(*second) / 2)
    definite = [max(radius, 12.6) for radius in definite]
    cubes = sum(radius**3 for radius in definite) * rng.uniform(*_RATIO)
    shares = rng.dirichlet([6.0] * int(rng.integers(1, 4)))
    return definite, [float(np.cbrt(cubes * share)) for share in shares]


def _pack(
    coarse: Grid, depth: np.ndarray, vessels: np.ndarray, radii: list[float], rng: np.random.Generator
) -> list[np.ndarray] | None:
    """Finds a centre for each ball, the largest first; None when one does not fit."""
    axes = coarse.axes()
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    placed: dict[int, np.ndarray] = {}
    for i in sorted(range(len(radii)), key=lambda i: -radii[i]):
        free = (depth > radii[i] + 2) & (vessels > 0.55 * radii[i] + 2)
        for j, (cx, cy, cz) in placed.items():
            free &= np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) > 1.09 * (radii[i] + radii[j]) + 5
        options = np.argwhere(free)
        if not len(options):
            return None
        pick = options[rng.integers(len(options))]
        placed[i] = np.array([axes[k][pick[k]] for k in range(3)]) + rng.uniform(-2, 2, 3)
    return [placed[i] for i in range(len(radii))]
