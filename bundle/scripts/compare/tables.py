"""The leaderboard as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from scripts.compare.analysis import HIGHER, TOTAL, Comparison

TITLES = {
    "dice": "Dice",
    "iou": "mIoU",
    "surface_dice": "Surface Dice",
    "hd95": "HD95",
    "assd": "ASSD",
    "recall": "Recall",
    "precision": "Precision",
    "accuracy": "Accuracy",
}
COSTS = {
    "parameters_m": ("M parameters", 2),
    "gmacs": ("GMACs", 2),
    "peak_gb": ("GB", 2),
    "step_s": ("s/step", 3),
    "case_s": ("s/case", 2),
    "train_min": ("min", 1),
    "epochs": ("epochs", 0),
}
LEGEND = (
    "Mean [95 % bootstrap interval over patients], averaged over seeds. Bold: the best mean. †: not told apart from "
    "the best (paired Wilcoxon, Holm's correction, 5 %)."
)


def leaderboard(found: Comparison) -> pd.DataFrame:
    """All numbers, for other programs: one row for each variant and class, costs in the rows of the total.

    Args:
        found: the comparison.

    Returns:
        Columns rank, variant, class, seeds, n, and for each metric its mean, ``_low``, ``_high`` and ``_seed_std``.
    """
    rows = []
    for rank, variant in enumerate(found.variants, 1):
        seeds = sum(run.name == variant for run in found.runs)
        for name in [TOTAL, *(c for c in found.classes if c != TOTAL)]:
            row = {"rank": rank, "variant": variant, "class": name, "seeds": seeds}
            for metric in (m for m in HIGHER if m in found.cases):
                cell = found.cell(variant, name, metric)
                row |= {"n": cell["n"]} if metric == found.metric else {}
                row |= {metric: cell["mean"]} | {f"{metric}_{k}": cell[k] for k in ("low", "high", "seed_std")}
            if name == TOTAL:
                row |= {"ece": found.calibration.get(variant, {}).get("ece")} | dict(found.costs[variant])
            rows.append(row)
    return pd.DataFrame(rows)


def columns(found: Comparison) -> list[tuple[str, str]]:
    """What the printed leaderboard shows: (class, metric), the total first, then each class, then HD95."""
    names = [name for name in found.classes if name != TOTAL]
    shown = [(TOTAL, found.metric), *((name, found.metric) for name in names if len(names) > 1)]
    return shown + [(TOTAL, m) for m in ("hd95", "surface_dice") if m in found.cases and m != found.metric]


def heading(name: str, metric: str) -> str:
    """Title of a column, with the direction that is better."""
    arrow = "↑" if HIGHER[metric] else "↓"
    return f"{'' if name == TOTAL else name + ' '}{TITLES[metric]} {arrow}"


def number(value: float | None, digits: int) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def cells(found: Comparison, variant: str) -> list[tuple[str, str, bool, bool]]:
    """A row of the printed leaderboard: mean, interval, whether it is the best, whether it cannot be told apart."""
    row = []
    for name, metric in columns(found):
        cell = found.cell(variant, name, metric)
        digits = 3 if metric not in ("hd95", "assd") else 2
        ends = f"[{number(cell['low'], digits)}, {number(cell['high'], digits)}]" if math.isfinite(cell["low"]) else ""
        best = found.best(name, metric) == variant
        row.append(
            (number(cell["mean"], digits), ends, best, metric == found.metric and found.like_the_best(variant, name))
        )
    return row


def markdown(found: Comparison) -> str:
    """The leaderboard as a Markdown table with its legend."""
    shown = [key for key in COSTS if any(found.costs[v].get(key) is not None for v in found.variants)]
    titles = ["network", "seeds", *(heading(*column) for column in columns(found))]
    lines = [_row([*titles, *(COSTS[key][0] for key in shown)])]
    lines.append(_row(["---"] * (len(titles) + len(shown))))
    for variant in found.variants:
        row = [variant.replace("|", "\\|"), str(sum(run.name == variant for run in found.runs))]
        for mean, ends, best, same in cells(found, variant):
            row.append(f"{f'**{mean}**' if best else mean}{'†' if same else ''} {ends}".strip())
        row += [number(found.costs[variant].get(key), COSTS[key][1]) for key in shown]
        lines.append(_row(row))
    return "\n".join(lines) + f"\n\n{LEGEND}\n"


def latex(found: Comparison) -> str:
    """The leaderboard as a LaTeX table; it needs the package booktabs."""
    shown = columns(found)
    titles = [escape(t) for t in ("Network", *(heading(*column) for column in shown))]
    titles = [t.replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$") for t in titles] + ["Params (M)", "GMACs"]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'c' * len(shown)}rr}}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
    ]
    for variant in found.variants:
        row = [escape(variant)]
        for mean, ends, best, same in cells(found, variant):
            text = rf"\textbf{{{mean}}}" if best else mean
            text += r"$^{\dagger}$" if same else ""
            row.append(rf"{text} {{\scriptsize {ends}}}" if ends else text)
        row += [number(found.costs[variant].get(key), COSTS[key][1]) for key in ("parameters_m", "gmacs")]
        lines.append(" & ".join(row).replace("–", "--") + r" \\")
    caption = escape(LEGEND).replace("†", r"$\dagger$")
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text for LaTeX, with what is special there escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%#_{}$" else c) for c in text)


def _row(parts: Iterable[str]) -> str:
    return f"| {' | '.join(parts)} |"
