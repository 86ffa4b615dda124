"""The plots of a plan's page, each a PNG as a data URI, and its pictures of cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from scripts.plan.decide import Plan
from scripts.plan.fingerprint import Fingerprint
from scripts.plan.memory import Size
from scripts.report_figures import colour, open_figure, png
from scripts.report_overlays import case_figure, load_case

_INK, _FAINT = "#1f2933", "#7b8794"


def grid_figure(found: Plan) -> str:
    """Draw voxel sizes and numbers of voxels along each axis, a dot a case, with what was chosen."""
    data, order = found.data, found.grid.order
    with open_figure(10.5, 2.7) as figure:
        left, right = figure.subplots(1, 2)
        if found.grid.known:
            _dots(left, data.spacings[:, order], found.grid.axcodes, found.grid.spacing)
            left.set_title("voxel size, mm", loc="left")
        else:
            left.text(0.5, 0.5, "voxel sizes are not known", ha="center", va="center", color=_FAINT)
            left.set_axis_off()
        _dots(right, data.shapes[:, order], found.grid.axcodes, found.size.patch)
        right.set_title("voxels as stored, and the patch", loc="left")
        return png(figure)


def grey_figure(found: Plan) -> str:
    """Draw the grey values of labelled voxels of every case, with the window of a CT."""
    data = found.data
    transform = found.choices["intensity"].value
    ends = [transform[k] for k in ("a_min", "a_max") if isinstance(transform, dict) and k in transform]
    with open_figure(10.5, 2.7) as figure:
        axes = figure.subplots(1, len(data.channels), squeeze=False)[0]
        for channel, (ax, name) in enumerate(zip(axes, data.channels, strict=True)):
            pooled = data.foreground(channel)
            low, high = (float(v) for v in np.percentile(pooled, (0.2, 99.8)))
            bins = np.linspace(low, max(high, low + 1e-6), 80)
            for record in data.records:
                heights, _ = np.histogram(record["channels"][channel]["foreground"], bins)
                ax.plot(bins[:-1], heights / max(heights.sum(), 1), color=_FAINT, linewidth=0.5, alpha=0.4)
            heights, _ = np.histogram(pooled, bins)
            ax.plot(bins[:-1], heights / heights.sum(), color=_INK, linewidth=1.8)
            for value in ends:
                ax.axvline(value, color=colour(4), linestyle=(0, (4, 3)))
            ax.set_title(f"{name}: values of labelled voxels", loc="left")
            ax.set_yticks([])
        return png(figure)


def class_figure(data: Fingerprint, unit: str) -> str:
    """Draw the volume of each class (in ``unit``) and the share that its largest component holds, a dot a case."""
    names = list(data.labels[1:])
    with open_figure(10.5, 1.3 + 0.32 * len(names)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for i in range(len(names)):
            facts = data.of_class(i + 1)
            spread = i + 0.25 * ((np.arange(len(facts)) * 0.618034) % 1 * 2 - 1)  # golden ratio: even, always the same
            style = {"s": 18, "color": colour(i), "edgecolor": "white", "linewidth": 0.4}
            left.scatter([max(fact["ml"], 1e-3) for fact in facts], spread, **style)
            right.scatter([fact["largest"] for fact in facts], spread, **style)
        left.set_xscale("log")
        left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.xaxis.set_minor_formatter(NullFormatter())
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
        left.set_title(f"volume, {unit}", loc="left")
        right.set_xlim(min(0.9, *right.get_xlim()), 1.01)
        right.set_title("share of the largest component", loc="left")
        return png(figure)


def cost_figure(found: Plan) -> str:
    """Draw what training steps took against their voxels, with the limits and the size that was chosen."""
    known = {s: c for s, c in found.meter.known.items() if math.isfinite(c.gb)}
    sizes = sorted(known, key=lambda size: size.voxels)
    limits = (("memory, GB", "gb", found.limits.memory), ("seconds a step", "seconds", found.limits.seconds))
    with open_figure(10.5, 2.7) as figure:
        for ax, (title, name, limit) in zip(figure.subplots(1, 2), limits, strict=True):
            values = [getattr(known[size], name) for size in sizes]
            ax.plot([size.voxels / 1e6 for size in sizes], values, color=_FAINT, marker="o", markersize=4, linewidth=1)
            ax.plot(*_point(found.size, getattr(known[found.size], name)), "*", color=colour(4), markersize=13)
            if limit:
                ax.axhline(limit, color=_INK, linestyle=(0, (4, 3)), linewidth=1)
            ax.set_ylim(bottom=0)
            ax.set_xlabel("million voxels in a step")
            ax.set_title(title, loc="left")
        return png(figure)


def pictures(data: Fingerprint, known: bool) -> list[tuple[str, str]]:
    """Draw the training cases with the least, the median and the most labelled volume.

    Args:
        data: the fingerprint.
        known: whether voxel sizes are true.

    Returns:
        Words and a PNG as a data URI for each.
    """
    totals = [sum(fact["ml"] for fact in record["classes"].values()) for record in data.records]
    order = np.argsort(totals, kind="stable")
    chosen = {"least": order[0], "median": order[len(order) // 2], "most": order[-1]}
    shown: dict[int, str] = {}
    for word, index in chosen.items():
        shown.setdefault(int(index), word)
    return [
        (
            f"{data.cases[index]['case_id']}: {word} labelled volume",
            case_figure(_volumes(data.cases[index]), len(data.labels) - 1, spacing_known=known),
        )
        for index, word in shown.items()
    ]


def _volumes(case: dict) -> object:
    return load_case(case["image"], case["label"], case["label"])


def _point(size: Size, value: float) -> tuple[float, float]:
    return size.voxels / 1e6, value


def _dots(ax: Axes, values: np.ndarray, codes: str, chosen: Sequence[float]) -> None:
    """A row an axis, a dot a case, a star for what was chosen."""
    for i in range(3):
        spread = i + 0.25 * ((np.arange(len(values)) * 0.618034) % 1 * 2 - 1)
        ax.scatter(values[:, i], spread, s=16, color=colour(i), edgecolor="white", linewidth=0.4)
        if i < len(chosen):
            ax.plot(chosen[i], i, "*", color=_INK, markersize=12)
    ax.set_yticks(range(3), list(codes))
    ax.set_ylim(2.5, -0.5)
    ax.margins(x=0.08)
