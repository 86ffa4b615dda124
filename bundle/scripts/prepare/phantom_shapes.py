"""Geometric shapes in the patient's frame, and a canvas that paints them with soft edges.

Millimetres everywhere: x to the patient's left, y to the back, z to the head, as in DICOM. A shape's ``distance`` is
negative inside; ``box`` holds it. Distances are approximate away from the surface, which is all that painting needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Box = tuple[np.ndarray, np.ndarray]
MARGIN = 6.0  # mm around a shape's box that its soft edge may touch


@dataclass(frozen=True)
class Grid:
    """A sampling grid centred on the patient: ``shape`` voxels (x, y, z) of ``spacing`` mm."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def axes(self) -> list[np.ndarray]:
        """Returns the voxel centres along x, y and z in mm."""
        return [
            ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(self.shape, self.spacing, strict=True)
        ]


@dataclass(frozen=True)
class Ellipsoid:
    """An axis-aligned ellipsoid: ``centre`` and ``radii`` (3,) in mm."""

    centre: np.ndarray
    radii: np.ndarray

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance to the surface in mm."""
        (cx, cy, cz), (rx, ry, rz) = self.centre, self.radii
        q = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
        return (q - 1) * np.float32(np.min(self.radii))

    def box(self) -> Box:
        """Lowest and highest corner in mm."""
        return self.centre - self.radii, self.centre + self.radii


@dataclass(frozen=True)
class Tube:
    """A straight vessel from ``start`` to ``end`` (3,), its radius going from ``wide`` to ``narrow`` mm."""

    start: np.ndarray
    end: np.ndarray
    wide: float
    narrow: float

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance to the wall in mm."""
        a, axis = self.start, self.end - self.start
        t = ((x - a[0]) * axis[0] + (y - a[1]) * axis[1] + (z - a[2]) * axis[2]) / float(axis @ axis)
        t = np.clip(t, 0, 1)  # where along the axis, from 0 to 1
        away = (x - a[0] - t * axis[0]) ** 2 + (y - a[1] - t * axis[1]) ** 2 + (z - a[2] - t * axis[2]) ** 2
        return np.sqrt(away) - (self.wide + (self.narrow - self.wide) * t)

    def box(self) -> Box:
        """Lowest and highest corner in mm."""
        reach = max(self.wide, self.narrow)
        return np.minimum(self.start, self.end) - reach, np.maximum(self.start, self.end) + reach


@dataclass(frozen=True)
class Blob:
    """A lumpy ball: ``centre`` (3,) and ``radius`` in mm; ``phases`` give each its own surface."""

    centre: np.ndarray
    radius: float
    phases: tuple[float, float, float]
    necrotic: bool = False

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance to the surface in mm."""
        away = [axis - centre for axis, centre in zip((x, y, z), self.centre, strict=True)]
        lumps = sum(np.sin(d * 3 / self.radius + p) for d, p in zip(away, self.phases, strict=True)) / 3
        return np.sqrt(sum(d * d for d in away)) - self.radius * (1 + 0.08 * lumps)

    def box(self) -> Box:
        """Lowest and highest corner in mm."""
        return self.centre - self.radius * 1.15, self.centre + self.radius * 1.15

    def scaled(self, radius: float) -> Blob:
        """Returns a blob at the same place with another radius."""
        return Blob(self.centre, radius, self.phases, self.necrotic)


Shape = Ellipsoid | Tube | Blob


@dataclass(frozen=True)
class Region:
    """The voxels inside a shape: a box of the volume, and a mask within it."""

    index: tuple[slice, ...]
    mask: np.ndarray

    def fill(self, volume: np.ndarray, value: int) -> None:
        """Sets these voxels of ``volume`` to ``value``."""
        volume[self.index][self.mask] = value


class Canvas:
    """A volume in HU, filled with air, to paint organs on; edges are one voxel wide (partial volume).

    Args:
        grid: the voxels.
    """

    def __init__(self, grid: Grid) -> None:
        """Starts with air everywhere."""
        self.grid, self.axes = grid, grid.axes()
        self.hu = np.full(grid.shape, -1000, np.float32)
        self.edge = float(grid.spacing[0])

    def paint(self, box: Box, distance: Distance, value: float) -> Region:
        """Paints ``value`` HU where ``distance`` is negative, within ``box`` (mm); returns the voxels inside."""
        index = tuple(
            slice(int(np.searchsorted(axis, low - MARGIN)), int(np.searchsorted(axis, high + MARGIN)))
            for axis, low, high in zip(self.axes, *box, strict=True)
        )
        x, y, z = np.meshgrid(*(axis[i] for axis, i in zip(self.axes, index, strict=True)), indexing="ij", sparse=True)
        shape = [i.stop - i.start for i in index]
        d = np.broadcast_to(distance(x, y, z), shape).astype(np.float32)  # (X, Y, Z) of the box
        self.hu[index] += np.clip(0.5 - d / self.edge, 0, 1) * (value - self.hu[index])
        return Region(index, d < 0)

    def shape(self, shape: Shape, value: float) -> Region:
        """Paints a shape with ``value`` HU; returns the voxels inside."""
        return self.paint(shape.box(), shape.distance, value)

    def texture(self, rng: np.random.Generator, region: Region, amount: float, smooth_mm: float) -> None:
        """Adds smooth noise with a standard deviation of ``amount`` HU inside a region."""
        found = ndimage.find_objects(region.mask.view(np.uint8))
        if not found or found[0] is None:
            return
        inside = region.mask[found[0]]
        field = smooth_noise(rng, inside.shape, [smooth_mm / s for s in self.grid.spacing], amount)
        self.hu[region.index][found[0]] += np.where(inside, field, 0)


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], sigma: Sequence[float], amount: float) -> np.ndarray:
    """Gaussian noise blurred by ``sigma`` voxels and scaled to a standard deviation of ``amount``."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), sigma)
    return field * np.float32(amount / max(float(field.std()), 1e-6))
