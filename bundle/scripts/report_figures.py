"""The plots of a run's report, each a PNG as a data URI: curves over the epochs, Dice and volume of every case."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe set, the ones that read well on grey first.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
_INK, _FAINT = "#1f2933", "#7b8794"
_DPI = 120
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a "$" in a class name is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def colour(index: int) -> str:
    """The label colour of the class at this position (0-based); colours repeat after seven classes."""
    return COLOURS[index % len(COLOURS)]


def tint(index: int) -> str:
    """The prediction colour of a class: its label colour mixed half with white, so that equal contours stay two."""
    rgb = np.array(matplotlib.colors.to_rgb(colour(index)))
    return matplotlib.colors.to_hex(0.5 * rgb + 0.5)


@contextmanager
def open_figure(width: float, height: float, face: str = "white") -> Iterator[Figure]:
    """Open a figure of this size (inches) in the report's style, without pyplot and its global state."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), dpi=_DPI, facecolor=face, layout="constrained")


def png(figure: Figure) -> str:
    """Render a figure to a PNG data URI, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def curves_figure(log: pd.DataFrame, classes: Sequence[str]) -> str:
    """Draw training loss, validation Dice and learning rate over the epochs.

    Args:
        log: columns epoch, train_loss, val_dice, val_dice_<class>, lr; NaN where an epoch was not validated.
        classes: class names in label order; those without a column are left out.

    Returns:
        PNG as a data URI.
    """
    columns = [c for c in ("train_loss", "val_dice", "lr") if c in log and log[c].notna().any()] or ["train_loss"]
    widths = {"train_loss": 3.0, "val_dice": 4.0, "lr": 2.0}
    with open_figure(10.5, 3.1) as figure:
        axes = figure.subplots(1, len(columns), width_ratios=[widths[c] for c in columns], squeeze=False)[0]
        for ax, column in zip(axes, columns, strict=True):
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
            if column == "val_dice":
                _draw_dice_curves(ax, log, classes)
                continue
            known = log[["epoch", column]].dropna()
            ax.set_title({"train_loss": "training loss", "lr": "learning rate"}[column], loc="left")
            ax.plot(known["epoch"], known[column], color=_INK, linewidth=1.5, marker="." if len(known) < 3 else None)
            if column == "lr":
                ax.set_ylim(bottom=0)
                ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        return png(figure)


def _draw_dice_curves(ax: Axes, log: pd.DataFrame, classes: Sequence[str]) -> None:
    known = log[log["val_dice"].notna()]
    marker = "o" if len(known) <= 40 else None
    shown = [(i, name) for i, name in enumerate(classes) if f"val_dice_{name}" in log]
    for i, name in shown if len(classes) > 1 else []:
        ax.plot(known["epoch"], known[f"val_dice_{name}"], color=colour(i), linewidth=1.2, label=name)
    mean_name = "mean" if len(classes) != 1 else classes[0]
    ax.plot(known["epoch"], known["val_dice"], color=_INK, lw=1.8, marker=marker, markersize=3, label=mean_name)
    best = known.loc[known["val_dice"].idxmax()]
    note = f"best {best['val_dice']:.3f} (epoch {best['epoch']:.0f})"
    ax.plot(best["epoch"], best["val_dice"], "*", color=_INK, markersize=11, label=note, linestyle="none")
    ax.set_title("validation Dice", loc="left")
    ax.set_ylim(min(0.0, float(known["val_dice"].min())), 1.0)
    ax.legend(loc="lower right", fontsize=7.5, ncols=1 + len(shown) // 6)


def dice_figure(per_case: pd.DataFrame, classes: Sequence[str]) -> str:
    """Draw the Dice of every case as one dot per class over a box of the quartiles; PNG as a data URI."""
    with open_figure(10.5, 0.8 + 0.5 * len(classes)) as figure:
        ax = figure.subplots()
        for i, name in enumerate(classes):
            dice = np.sort(per_case.loc[per_case["class"] == name, "dice"].dropna().to_numpy())
            if dice.size == 0:
                continue
            ax.boxplot(
                dice, positions=[i], orientation="horizontal", widths=0.6, showfliers=False, whis=(0, 100),
                manage_ticks=False, medianprops={"color": _INK, "linewidth": 1.6},
                boxprops={"color": _FAINT}, whiskerprops={"color": _FAINT}, capprops={"color": _FAINT},
            )  # fmt: skip
            spread = 0.2 * ((np.arange(dice.size) * 0.618034) % 1 * 2 - 1)  # golden ratio: even, the same every time
            ax.scatter(dice, i + spread, s=22, color=colour(i), edgecolor="white", linewidth=0.5, zorder=3, alpha=0.9)
        ax.set_yticks(range(len(classes)), list(classes))
        ax.set_ylim(len(classes) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        lowest = float(per_case["dice"].min())
        ax.set_xlim(max(0.0, np.floor(lowest * 10 - 0.5) / 10) - 0.005, 1.005)
        ax.set_xlabel("Dice")
        return png(figure)


def volume_figure(per_case: pd.DataFrame, classes: Sequence[str], *, spacing_known: bool = True) -> str:
    """Draw predicted against labelled volume, one panel per class; PNG as a data URI."""
    # The tables hold millilitres computed with 1 mm when the spacing is unknown: there 1 ml is 1000 voxels.
    unit = "ml" if spacing_known else "1000 voxels"
    rows = -(-len(classes) // 4)
    with open_figure(10.5, 2.75 * rows) as figure:
        axes = figure.subplots(rows, 4, squeeze=False).ravel()
        for ax in axes[len(classes) :]:
            ax.set_axis_off()
        for i, (ax, name) in enumerate(zip(axes, classes, strict=False)):
            volumes = per_case.loc[per_case["class"] == name, ["volume_ml_label", "volume_ml_pred"]].dropna()
            top = max(float(volumes.to_numpy().max(initial=0.0)) * 1.08, 1e-3)
            ax.plot([0, top], [0, top], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)))
            ax.scatter(*volumes.to_numpy().T, s=20, color=colour(i), edgecolor="white", linewidth=0.5, zorder=3)
            bias = f"{(volumes['volume_ml_pred'] - volumes['volume_ml_label']).mean():+.3g}".replace("-", "\u2212")
            ax.set_title(f"{name}\nmean difference {bias}" if len(volumes) else name, loc="left", fontsize=9)
            ax.set(xlim=(0, top), ylim=(0, top), xlabel=f"label ({unit})", ylabel=f"prediction ({unit})")
            ax.locator_params(nbins=4)
            ax.set_aspect("equal")
        return png(figure)
