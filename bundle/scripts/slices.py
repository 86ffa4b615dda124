"""Volumes seen slice by slice: sizes and ranges for 2D networks, and for volumes whose slices are thick.

Slices lie across the last axis of a volume, in the order of the configuration's ``axcodes``.
"""

from __future__ import annotations

from collections.abc import Sequence


def network_patch(patch_size: int | Sequence[int], spatial_dims: int) -> list[int]:
    """What a network sees of a volume at a time; a 2D network takes the part of a 3D patch that lies in a slice.

    Args:
        patch_size: voxels along each axis: one number for all, three, or for a 2D network two.
        spatial_dims: 2 or 3, of the network.

    Returns:
        ``[H, W]`` or ``[H, W, D]``.

    Raises:
        ValueError: numbers are missing, or `spatial_dims` is neither 2 nor 3.
    """
    _check(spatial_dims)
    sizes = [patch_size] * 3 if isinstance(patch_size, int) else list(patch_size)
    if not spatial_dims <= len(sizes) <= 3:
        raise ValueError(
            f"patch_size is {sizes}, but the network has spatial_dims {spatial_dims}: expected "
            f"{'2 or 3' if spatial_dims == 2 else '3'} numbers. Change patch_size, or spatial_dims."
        )
    return sizes[:spatial_dims]


def crop_size(patch_size: int | Sequence[int], spatial_dims: int) -> list[int]:
    """Size of a training crop on the axes of a volume.

    Args:
        patch_size: as of `network_patch`.
        spatial_dims: 2 or 3, of the network.

    Returns:
        ``[H, W, D]``, where D is 1 for a 2D network.
    """
    return [*network_patch(patch_size, spatial_dims), 1][:3]


def pixdim(spacing: float | Sequence[float], spatial_dims: int) -> list[float]:
    """Voxel sizes for MONAI's ``Spacing``; a 2D network gets the slices that are there, and none between them.

    Args:
        spacing: mm along each axis, or one number for all; zero or less keeps that of the image.
        spatial_dims: 2 or 3, of the network.

    Returns:
        Three numbers, of which the last is -1 (keep) for a 2D network.
    """
    _check(spatial_dims)
    sizes = [spacing] * 3 if isinstance(spacing, int | float) else list(spacing)
    return [*sizes[:2], -1.0] if spatial_dims == 2 else sizes


def rotations(angle: float, axes: int) -> list[float]:
    """Range of rotations about each axis of a volume, for MONAI's ``RandAffine``.

    Args:
        angle: largest angle in radians, to either side.
        axes: 3 to rotate freely, 2 to turn slices in their plane.

    Returns:
        One angle for each axis of the volume.
    """
    _check(axes)
    return [0.0, 0.0, angle] if axes == 2 else [angle] * 3


def zooms(limits: Sequence[float], axes: int) -> list[list[float]]:
    """Range of zooms along each axis of a volume, for MONAI's ``RandAffine``.

    Args:
        limits: smallest and largest change of the scale, e.g. ``[-0.3, 0.4]``.
        axes: 3 to zoom along every axis, 2 to leave the distance between slices as it is.

    Returns:
        Limits for each axis of the volume.
    """
    _check(axes)
    return [list(limits), list(limits), [0.0, 0.0] if axes == 2 else list(limits)]


def _check(axes: int) -> None:
    if axes not in (2, 3):
        raise ValueError(f"Expected 2 (slices) or 3 (volumes) spatial axes, got {axes}. Correct spatial_dims.")
