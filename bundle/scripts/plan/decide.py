"""Puts a plan together: what was measured of the data, and of training steps, becomes ids of the configuration."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from scripts.plan.classes import plan_components, plan_mirroring, plan_sampling
from scripts.plan.fingerprint import Fingerprint
from scripts.plan.geometry import Choice, Grid, coarsen, plan_grid
from scripts.plan.intensity import Modality, find_modality, plan_intensity
from scripts.plan.memory import Cost, Limits, Meter, Size, find_largest
from scripts.plan.overlay import IMAGE_ONLY
from scripts.plan.stages import accepted, network_overlays, patch_path, plan_dims, plan_stages

BATCH = 2  # cases, at least
SEEN = 0.05  # of the training data: a batch need not hold more, as in nnU-Net


@dataclass(frozen=True)
class Wishes:
    """What the user says, in place of what would be found out; see `scripts.plan.command.plan`."""

    modality: str = ""
    spacing_known: bool | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class Plan:
    """What was found and decided.

    Attributes:
        data: the fingerprint.
        grid: of the network.
        modality: of the images.
        network: as the user named it.
        choices: id -> value and reason.
        meter: what training steps took.
        size: the patch and batch that were chosen.
        limits: of a training step.
        warnings: what the user should look at.
    """

    data: Fingerprint
    grid: Grid
    modality: Modality
    network: str
    choices: dict[str, Choice]
    meter: Meter
    size: Size
    limits: Limits
    warnings: tuple[str, ...]


def decide(
    data: Fingerprint, network: str, limits: Limits, wishes: Wishes | None = None, *, progress: bool = True
) -> Plan:
    """Decide on everything; training steps are run to find patch and batch.

    Args:
        data: the fingerprint.
        network: overlay, file, or ``base``.
        limits: of a training step.
        wishes: of the user.
        progress: tell what training steps take.

    Returns:
        The plan.

    Raises:
        ValueError: an unknown network, or not even the smallest patch fits into the memory.
    """
    wishes, overlays = wishes or Wishes(), network_overlays(network)
    kind, grid = find_modality(data, wishes.modality), plan_grid(data, wishes.spacing_known)
    intensity = plan_intensity(data, kind)
    dims = plan_dims(overlays, grid, wishes.dimensions)
    settings: dict[str, Any] = {"labels": list(data.labels), "in_channels": len(data.channels), **IMAGE_ONLY}
    settings |= {"spatial_dims": dims.value, "regions": data.regions}
    stages = plan_stages(overlays, settings, grid)
    settings |= stages.overrides
    meter = Meter(overlays, settings, limits.memory, progress=progress)
    size = _largest(grid, data, stages.divisor, meter, limits)
    wider = coarsen(grid, data, math.prod(size.patch)) if dims.value == 3 else grid
    if wider != grid:
        grid, size = wider, _largest(wider, data, stages.divisor, meter, limits)
    choices = {
        "labels": Choice(list(data.labels), "of dataset.json"),
        **({"regions": Choice(data.regions, "of dataset.json")} if data.regions else {}),
        "in_channels": Choice(len(data.channels), ", ".join(data.channels)),
        "spatial_dims": dims,
        **_grid_choices(grid),
        **_size_choices(size, meter, grid, limits, stages.reason),
        **{name: Choice(value, stages.reason) for name, value in stages.overrides.items()},
        **intensity,
        "class_ratios": plan_sampling(data),
        "keep_largest": plan_components(data),
        "flip_axes": plan_mirroring(data, grid, int(dims.value)),
        "augmented_axes": _augmented(grid, int(dims.value)),
        **_cache(data, grid),
    }
    return Plan(
        data, grid, kind, network, choices, meter, size, limits, _warnings(kind, grid, meter.known[size], limits)
    )


def sizes_of(path: list[list[int]], grid: Grid, cases: int) -> list[Size]:
    """Patches with the least batch, then larger batches of the largest patch.

    Args:
        path: patches from small to large.
        grid: of the network.
        cases: number of training cases.

    Returns:
        Sizes of growing voxels.
    """
    least = min(BATCH, cases)
    filled = cases * math.prod(min(1.0, n / side) for n, side in zip(grid.shape, path[-1], strict=False))
    most = min(cases, max(least, int(SEEN * filled)))
    return [
        *(Size(tuple(patch), least) for patch in path),
        *(Size(tuple(path[-1]), batch) for batch in range(least + 1, most + 1)),
    ]


def _largest(grid: Grid, data: Fingerprint, divisor: tuple[int, ...], meter: Meter, limits: Limits) -> Size:
    path = accepted(patch_path(grid, divisor), meter.overlays, meter.settings)
    sizes = sizes_of(path, grid, len(data.records))
    return sizes[find_largest(sizes, meter, limits)]


def _grid_choices(grid: Grid) -> dict[str, Choice]:
    unit = "mm; " if grid.known else ""
    return {
        "axcodes": Choice(grid.axcodes, grid.reasons["axcodes"]),
        "spacing": Choice(list(grid.spacing) if grid.known else [-1, -1, -1], unit + grid.reasons["spacing"]),
        "spacing_known": Choice(grid.known, grid.reasons["spacing_known"]),
    }


def _size_choices(size: Size, meter: Meter, grid: Grid, limits: Limits, stages: str) -> dict[str, Choice]:
    cost, volume = meter.known[size], " x ".join(str(n) for n in grid.shape)
    patch = (
        f"a training step takes {cost.gb:.2f} GB and {cost.seconds:.2f} s (measured), the limit is {limits}; a median "
        f"volume has {volume} voxels; the network {stages}"
    )
    grown = size.batch > BATCH
    batch = "cases; more, as the patch holds a median volume" if grown else "cases; memory goes to the patch first"
    return {"patch_size": Choice(list(size.patch), patch), "batch_size": Choice(size.batch, batch)}


def _augmented(grid: Grid, dims: int) -> Choice:
    if dims == 2:
        return Choice(2, "a network of slices")
    return Choice(2 if grid.thick else 3, grid.reasons["thick"])


def _cache(data: Fingerprint, grid: Grid) -> dict[str, Choice]:
    """Share of the cases that is kept in memory, where they do not all fit into half of it."""
    voxels = data.shapes.prod(axis=1).sum()
    if grid.known:
        voxels = (data.shapes * data.spacings).prod(axis=1).sum() / math.prod(grid.spacing)
    everyone = 1 + data.held_out / len(data.records)
    need = float(voxels) * 4 * (len(data.channels) + 1) * everyone / 2**30  # float32; the label, too
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 / 2**30
    if need <= have:
        return {}
    reason = f"all cases on this grid take {need:.0f} GB, half of the machine's memory is {have:.0f}"
    return {"cache_rate": Choice(round(have / need, 2), reason)}


def _warnings(kind: Modality, grid: Grid, cost: Cost, limits: Limits) -> tuple[str, ...]:
    found = [kind.warning] if kind.warning else []
    if kind.guessed:
        found.append(f"The modality, {kind.name}, is {kind.reason}.")
    if "guessed" in grid.reasons["spacing_known"]:
        found.append(f"Voxel sizes are {'true' if grid.known else 'not known'}: {grid.reasons['spacing_known']}.")
    if limits.seconds and cost.seconds > limits.seconds:
        found.append(
            f"A training step takes {cost.seconds:.1f} s with the smallest patch already; a smaller network is faster."
        )
    return tuple(found)
