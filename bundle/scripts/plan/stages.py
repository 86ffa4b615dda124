"""What a network asks of its input: slices or volumes, sizes it divides by, and how often it halves thick slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts import workflows
from scripts.compare.running import BASE, merged
from scripts.plan.geometry import Choice, Grid

STRIDES = "network_def::encoder::network::strides"  # of MONAI's networks, one for each level
UPSAMPLING = "network_def::encoder::network::upsample_kernel_size"  # of DynUNet: must follow the strides
FEW = 4  # slices: with fewer there is nothing to convolve across
LEAST = 8  # voxels: an axis with fewer is not halved, as in nnU-Net
SHORT = 16  # voxels: an axis with no more is never cut
CUBE = 256**3  # voxels of the largest patch, as in nnU-Net
UNKNOWN_RATIO = 4.0  # of thick slices whose distance is not known


@dataclass(frozen=True)
class Stages:
    """How a network takes an image apart.

    Attributes:
        divisor: what each axis of a patch must be divisible by.
        overrides: ids of the configuration that change the network's strides.
        reason: how often it halves each axis, and why.
    """

    divisor: tuple[int, ...]
    overrides: dict[str, Any]
    reason: str


def network_overlays(network: str) -> list[str]:
    """Overlays of a network that is named as `nny compare` and `nny train` do.

    Args:
        network: ``unet`` or ``network_unet``, a YAML file, or ``base``; ``+`` adds further overlays or files.

    Returns:
        Names for `scripts.workflows.overlay_paths`; none for the network of inference.yaml.

    Raises:
        ValueError: an unknown name.
    """
    main, *more = str(network).split("+")
    known = main.endswith((".yaml", ".yml")) or main.startswith("network_")
    first = [] if main == BASE else [main if known else f"network_{main}"]
    workflows.overlay_paths([*first, *more])
    return [str(Path(name).expanduser().resolve()) if Path(name).is_file() else name for name in [*first, *more]]


def plan_dims(overlays: Sequence[str], grid: Grid, said: int | None) -> Choice:
    """Choose between a network of slices and one of volumes.

    Raises:
        ValueError: neither 2 nor 3.
    """
    if said is not None:
        if said not in (2, 3):
            raise ValueError(f"dimensions is {said!r}; expected 2 (slices) or 3 (volumes).")
        return Choice(said, "as you say")
    if merged(overlays, {})["spatial_dims"] == 2:
        return Choice(2, "a network of slices")
    if grid.shape[2] < FEW:
        return Choice(2, f"volumes have {grid.shape[2]} slices: nothing to convolve across")
    return Choice(3, f"volumes have {grid.shape[2]} slices")


def plan_stages(overlays: Sequence[str], settings: Mapping[str, Any], grid: Grid) -> Stages:
    """Find out what a network divides by, and spare thick slices from being halved where its strides can be set.

    Args:
        overlays: of the network.
        settings: ids of the configuration: classes, channels, ``spatial_dims``.
        grid: of the network.

    Returns:
        Divisor, strides to set, and words.
    """
    config = merged(overlays, settings)
    own = {} if config["spatial_dims"] == 2 or not grid.thick else _spared(config, grid)
    config = merged(overlays, {**settings, **own})
    divisor = divisor_of(config)
    halved = " x ".join(str(int(math.log2(n))) for n in divisor)
    if own:
        return Stages(divisor, own, f"halves the axes {halved} times: thick slices only once they are like the others")
    fixed = "; its overlay has no strides to set" if grid.thick and config["spatial_dims"] == 3 else ""
    return Stages(divisor, {}, f"halves the axes {halved} times{fixed}")


def divisor_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """What each axis of the image must be divisible by, of the network of a merged configuration."""
    encoder = build(config).encoder
    return tuple(int(n) for n in getattr(encoder, "divisor", encoder.strides[-1]))


def build(config: Mapping[str, Any], device: str = "cpu") -> Any:
    """Build the network of a merged configuration; on ``meta`` without its weights."""
    parser = ConfigParser()
    parser.read_config(dict(config))
    with torch.device(device):
        return parser.get_parsed_content("network_def")


def patch_path(grid: Grid, divisor: Sequence[int]) -> list[list[int]]:
    """List patches from the smallest to the one that holds a median volume, each one step larger than the one before.

    Patches are alike to the volume in shape, but for axes of at most `SHORT` voxels, such as a few thick slices, which
    are always whole. Volumes of more than `CUBE` voxels are first cut to a cube (in mm).

    Args:
        grid: of the network.
        divisor: of `Stages`, one number for each axis of the network.

    Returns:
        Patches, each divisible by ``divisor``.
    """
    dims = len(divisor)
    shape, spacing = grid.shape[:dims], grid.spacing[:dims]
    side = (CUBE * math.prod(grid.spacing)) ** (1 / 3) if dims == 3 else math.inf  # mm
    aim = [min(n, side / mm) for n, mm in zip(shape, spacing, strict=True)]
    full = [math.ceil(n / d) * d for n, d in zip(aim, divisor, strict=True)]
    patch = [n if n <= SHORT else min(2 * d, n) for d, n in zip(divisor, full, strict=True)]
    path = [list(patch)]
    while patch != full:
        axis = min((a for a in range(dims) if patch[a] < full[a]), key=lambda a: patch[a] / aim[a])
        patch[axis] += divisor[axis]
        path.append(list(patch))
    return path


def accepted(path: Sequence[list[int]], overlays: Sequence[str], settings: Mapping[str, Any]) -> list[list[int]]:
    """Those patches that a network of a fixed image size can be built for; all of them for other networks.

    Raises:
        ValueError: not one.
    """
    if "@patch_size" not in str(merged(overlays, settings)["network_def"]):
        return list(path)
    fitting, reason = [], ""
    for patch in path:
        try:
            build(merged(overlays, {**settings, "patch_size": patch}), "meta")
            fitting.append(patch)
        except (ValueError, RuntimeError) as error:
            reason = str(error.__cause__ or error)
    if not fitting:
        raise ValueError(f"The network takes none of the patches from {path[0]} to {path[-1]}: {reason}")
    return fitting


def _spared(config: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """Strides that halve thick slices only from the level on at which they are less than twice the other sizes."""
    network = config["network_def"].get("encoder", {}).get("network")
    if not isinstance(network, Mapping) or not isinstance(network.get("strides"), list):
        return {}
    ratio, size = grid.ratio or UNKNOWN_RATIO, grid.shape[2]
    strides = []
    for stride in network["strides"]:
        if not isinstance(stride, int):
            return {}  # somebody has thought of it
        halves = stride == 2 and ratio < 2 and size >= LEAST
        strides.append([stride, stride, stride if halves else 1])
        size, ratio = (size // 2, ratio) if halves else (size, ratio / stride)
    found: dict[str, Any] = {STRIDES: strides}
    if "upsample_kernel_size" in network:
        found[UPSAMPLING] = strides[1:]
    return found
