"""The plots of a comparison, each a PNG as a data URI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scripts.compare.analysis import TOTAL, Comparison, patient_scores
from scripts.compare.ranking import CriticalDifference, Stability
from scripts.compare.tables import TITLES
from scripts.report_figures import colour, open_figure, png

_INK, _FAINT = "#1f2933", "#7b8794"
MARKERS = "osD^vPX*"


def box_figure(found: Comparison) -> str:
    """Draw every case of every variant over a box of the quartiles, in total and for each class."""
    names = [TOTAL, *(name for name in found.classes if name != TOTAL)]
    names = names if len(names) > 2 else names[:1]
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    with open_figure(10.5, rows * (0.9 + 0.34 * len(found.variants))) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for ax in axes.ravel()[len(names) :]:
            ax.set_axis_off()
        for ax, name in zip(axes.ravel(), names, strict=False):
            _boxes(ax, found, name)
        return png(figure)


def _boxes(ax: Axes, found: Comparison, name: str) -> None:
    for i, variant in enumerate(found.variants):
        part = found.cases[(found.cases["variant"] == variant) & (found.cases["class"] == name)]
        values = np.sort(part[found.metric].dropna().to_numpy())
        if not values.size:
            continue
        ax.boxplot(
            values, positions=[i], orientation="horizontal", widths=0.6, showfliers=False, whis=(0, 100),
            manage_ticks=False, medianprops={"color": _INK, "linewidth": 1.6},
            boxprops={"color": _FAINT}, whiskerprops={"color": _FAINT}, capprops={"color": _FAINT},
        )  # fmt: skip
        spread = 0.2 * ((np.arange(values.size) * 0.618034) % 1 * 2 - 1)  # golden ratio: even, the same every time
        ax.scatter(values, i + spread, s=16, color=colour(i), edgecolor="white", linewidth=0.4, zorder=3)
    ax.set_yticks(range(len(found.variants)), found.variants)
    ax.set_ylim(len(found.variants) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_title(name, loc="left")
    ax.set_xlabel(TITLES[found.metric])


def cost_figure(found: Comparison) -> str | None:
    """Draw the mean score, with its interval, against parameters, multiply-accumulates and time; None without any."""
    wanted = {"parameters_m": "M parameters", "gmacs": "GMACs for a patch", "case_s": "seconds per case"}
    wanted = {k: t for k, t in wanted.items() if any((found.costs[v].get(k) or 0) > 0 for v in found.variants)}
    if not wanted:
        return None
    with open_figure(10.5, 3.1) as figure:
        axes = figure.subplots(1, len(wanted), sharey=True, squeeze=False)[0]
        for ax, (key, title) in zip(axes, wanted.items(), strict=True):
            for i, variant in enumerate(found.variants):
                cell, cost = found.cell(variant, TOTAL, found.metric), found.costs[variant].get(key)
                if not cost:
                    continue
                ends = np.array([[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]])
                ax.errorbar(
                    cost, cell["mean"], yerr=np.nan_to_num(ends).clip(min=0), fmt=MARKERS[i % len(MARKERS)],
                    color=colour(i), markeredgecolor="white", ecolor=_FAINT, markersize=9, elinewidth=1, label=variant,
                )  # fmt: skip
            ax.set_xscale("log")
            ax.set_xlabel(title)
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.xaxis.set_minor_formatter(lambda value, _: "")
        axes[0].set_ylabel(TITLES[found.metric])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return png(figure)


def pair_figure(found: Comparison) -> str | None:
    """Draw the best variant against each of the next three, a dot a patient; None with a single variant."""
    if len(found.variants) < 2:
        return None
    best, others = found.variants[0], found.variants[1:4]
    scores = patient_scores(found.cases, TOTAL, found.metric)
    with open_figure(3.5 * len(others), 3.4) as figure:
        for i, (ax, other) in enumerate(zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True), 1):
            both = scores[[other, best]].dropna()
            low, high = both.min(axis=None), both.max(axis=None)
            room = 0.05 * (high - low) + 1e-3
            ends = (low - room, high + room)
            ax.plot(ends, ends, color=_FAINT, linewidth=1, linestyle=(0, (4, 3)))
            ax.scatter(both[other], both[best], s=24, color=colour(i), edgecolor="white", linewidth=0.5, zorder=3)
            ax.set(xlim=ends, ylim=ends, xlabel=other, ylabel=best, aspect="equal")
            ax.locator_params(nbins=4)
        return png(figure)


def critical_difference_figure(found: CriticalDifference) -> str:
    """Draw mean ranks on a line, the best on the left; a bar joins variants that cannot be told apart."""
    names, values = list(found.mean_ranks.index), found.mean_ranks.to_numpy()
    rows, half = len(found.cliques), -(-len(names) // 2)
    top = 0.7 + 0.28 * rows
    with open_figure(9.5, 0.9 + 0.3 * (rows + half)) as figure:
        ax = figure.subplots()
        ax.set_axis_off()
        count = len(names)
        ax.set(xlim=(1 - 0.55 * count, count + 0.55 * count), ylim=(top + 0.5 * half + 0.2, -1.25))
        ax.plot([1, count], [0, 0], color=_INK, linewidth=1.2)
        for rank in range(1, count + 1):
            ax.plot([rank, rank], [-0.12, 0], color=_INK, linewidth=1.2)
            ax.text(rank, -0.2, str(rank), ha="center", va="bottom", fontsize=8)
        width = min(found.difference, count - 1)
        ax.plot([1, 1 + width], [-0.95, -0.95], color=_INK, linewidth=1.2, marker="|", markersize=7)
        cut = " (wider than the scale)" if found.difference > count - 1 else ""
        ax.text(1 + width / 2, -1.02, f"CD = {found.difference:.2f}{cut}", ha="center", va="bottom", fontsize=8)
        for i, (name, value) in enumerate(zip(names, values, strict=True)):
            left = i < half
            y = top + 0.5 * (i if left else count - 1 - i)
            end = 1 - 0.05 * count if left else count + 0.05 * count
            ax.plot([value, value, end], [0, y, y], color=colour(i), linewidth=1.3)
            ax.text(end, y, f"{name}  {value:.2f} " if left else f" {value:.2f}  {name}",
                    ha="right" if left else "left", va="center", fontsize=9)  # fmt: skip
        for i, clique in enumerate(found.cliques):
            ends = found.mean_ranks[[clique[0], clique[-1]]].to_numpy() + [-0.03, 0.03]
            ax.plot(ends, [0.3 + 0.28 * i] * 2, color=_INK, linewidth=4, solid_capstyle="butt")
        return png(figure)


def stability_figure(found: Stability, variants: Sequence[str]) -> str:
    """Draw for each variant how often it has which rank when patients are drawn anew."""
    shares = found.shares.loc[list(variants)]
    with open_figure(7.5, 0.8 + 0.34 * len(variants)) as figure:
        ax = figure.subplots()
        ax.imshow(shares, cmap="Greys", vmin=0, vmax=1.2, aspect="auto")
        for (row, column), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.005:
                shade = "white" if share > 0.6 else _INK
                ax.text(column, row, f"{share:.0%}", ha="center", va="center", color=shade, fontsize=8.5)
        ax.set_xticks(range(shares.shape[1]), [f"rank {rank}" for rank in shares.columns])
        ax.set_yticks(range(len(variants)), variants)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        return png(figure)


def reliability_figure(calibration: Mapping[str, Mapping[str, Any]], variants: Sequence[str]) -> str | None:
    """Draw accuracy against confidence of voxels, a line a variant; None where no run was probed."""
    if not calibration:
        return None
    with open_figure(6.0, 4.4) as figure:
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for i, name in enumerate(variants):
            if name not in calibration:
                continue
            bins = pd.DataFrame({k: calibration[name][k] for k in ("voxels", "confidence", "right")})
            bins = bins[bins["voxels"] > 0]
            x, y = bins["confidence"] / bins["voxels"], bins["right"] / bins["voxels"]
            label = f"{name}: ECE {calibration[name]['ece']:.3f}"
            ax.plot(x, y, color=colour(i), marker=MARKERS[i % len(MARKERS)], markersize=5, linewidth=1.4, label=label)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence of the chosen class", ylabel="share that is right")
        ax.set_aspect("equal")
        figure.legend(loc="outside right upper")
        return png(figure)
