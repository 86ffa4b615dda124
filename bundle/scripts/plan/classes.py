"""What the training masks say about their classes: how often to sample each, which are one piece, which sides count."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from scripts.plan.fingerprint import Fingerprint
from scripts.plan.geometry import Choice, Grid

WHOLE = 0.95  # share of a class's voxels in its largest component that makes it one piece, but for crumbs …
MOST = 0.95  # … in so many of the masks
SMALL = 0.1  # of the largest class: smaller ones are sampled twice as often
RARE = 0.5  # share of the cases that hold it, below which a class is sampled twice as often
SHIFT = 0.25  # of the smaller class's extent: how far apart two classes must lie for their order to count
ENOUGH = 5  # cases, to speak of an order


def plan_sampling(data: Fingerprint) -> Choice:
    """Choose how often a crop is centred on each class."""
    volumes = [_median([facts["ml"] for facts in data.of_class(v)]) for v in range(1, len(data.labels))]
    present = [len(data.of_class(v)) / len(data.records) for v in range(1, len(data.labels))]
    ratios, twice = [1], []
    for name, volume, share in zip(data.labels[1:], volumes, present, strict=True):
        rare = volume < SMALL * max(volumes) or share < RARE
        ratios.append(2 if rare else 1)
        twice += [name] if rare else []
    rule = f"under {SMALL:.0%} of the largest class, or in less than {RARE:.0%} of the cases"
    reason = f"twice as often: {', '.join(twice)} ({rule})" if twice else f"each alike: none is {rule}"
    return Choice(ratios, reason)


def plan_components(data: Fingerprint) -> Choice:
    """Choose the classes of which only the largest component is kept: candidates, to be checked on predictions."""
    if data.regions:
        return Choice([], "none: what is taken from one class would be a hole in the regions around it")
    kept, told = [], []
    rule = f"candidates: {MOST:.0%} of the training masks are one piece, but for {1 - WHOLE:.0%} of their voxels"
    for value, name in enumerate(data.labels[1:], 1):
        facts = data.of_class(value)
        whole = sum(fact["largest"] >= WHOLE for fact in facts)
        if facts and whole >= MOST * len(facts):
            kept.append(value)
        else:
            told.append(f"{name} in {whole} of {len(facts)}")
    if not told:
        return Choice(kept, f"{rule}: all are")
    return Choice(kept, f"{rule}; not so: {', '.join(told)} masks")


def plan_mirroring(data: Fingerprint, grid: Grid, dims: int) -> Choice:
    """Choose the axes along which crops are mirrored: not across thick slices, nor where classes have a fixed order.

    Args:
        data: the fingerprint.
        grid: of the network.
        dims: 2 or 3, of the network.
    """
    axes, told = [], []
    for axis in range(dims):
        order = fixed_order(data, grid.order[axis])
        if order:
            told.append(f"axis {axis}: {order}")
        elif axis == 2 and grid.thick:
            told.append("axis 2: slices are thick")
        else:
            axes.append(axis)
    return Choice(axes, f"not along {'; '.join(told)}" if told else "no classes that always lie in one order")


def fixed_order(data: Fingerprint, axis: int) -> str:
    """Two classes of which one lies on the same side of the other in nearly every case; mirroring would undo that.

    Args:
        data: the fingerprint.
        axis: of R, A, S.

    Returns:
        Words for the pair that lies clearest apart, or nothing.
    """
    best, words = 0.0, ""
    for low, high in combinations(range(1, len(data.labels)), 2):
        both = [r["classes"] for r in data.records if str(low) in r["classes"] and str(high) in r["classes"]]
        if len(both) < ENOUGH:
            continue
        pairs = [(classes[str(low)], classes[str(high)]) for classes in both]
        shifts = np.array([b["centre"][axis] - a["centre"][axis] for a, b in pairs])
        extents = np.array([min(a["extent"][axis], b["extent"][axis]) for a, b in pairs])
        clear = float(abs(np.median(shifts / np.maximum(extents, 1e-6))))
        same = max(np.mean(shifts > 0), np.mean(shifts < 0))
        if same >= MOST and clear >= SHIFT and clear > best:
            side = ("right", "front", "head")[axis] if np.median(shifts) > 0 else ("left", "back", "feet")[axis]
            best, words = clear, f"{data.labels[high]} towards the {side} of {data.labels[low]} in {same:.0%}"
    return words


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else 0.0
