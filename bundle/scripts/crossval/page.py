"""The page of a cross-validation, and the tables beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from scripts import pages
from scripts.compare.tables import number
from scripts.crossval.candidates import LARGEST, NONE
from scripts.crossval.gather import TOTAL, Gathered, by_fold, summary
from scripts.crossval.running import Plan
from scripts.files import replacing
from scripts.report_figures import dice_figure

_TEMPLATE = "crossval/page_template.html"
SHOWN = {"dice": ("Dice ↑", 3), "hd95": ("HD95 ↓", 2), "assd": ("ASSD ↓", 2), "surface_dice": ("Surface Dice ↑", 3)}


def write_page(plan: Plan, found: Gathered) -> str:
    """Write the page and ``summary.csv``, ``folds.csv``, ``cases.csv`` and ``postprocessing.csv``.

    Args:
        plan: the cross-validation.
        found: of `gather`.

    Returns:
        Path of the page.
    """
    means, folds = summary(found), by_fold(found)
    tables = {"summary": means, "folds": folds, "cases": found.cases, "postprocessing": evidence(found)}
    for name, table in tables.items():
        with replacing(plan.output / f"{name}.csv") as part:
            table.to_csv(part, index=False)
    return pages.write_page(_TEMPLATE, _content(plan, found, means, folds), plan.output / "index.html")


def evidence(found: Gathered) -> pd.DataFrame:
    """What every choice was made on: column ``for`` (a fold, or ensemble), then those of `Choice.evidence`."""
    parts = [choice.evidence.assign(**{"for": f"fold {fold}"}) for fold, choice in found.nested.items()]
    table = pd.concat([*parts, found.choice.evidence.assign(**{"for": "ensemble"})], ignore_index=True)
    return table[["for", *(name for name in table if name != "for")]]


def _content(plan: Plan, found: Gathered, means: pd.DataFrame, folds: pd.DataFrame) -> dict[str, Any]:
    """What the page shows, as text and data URIs."""
    metrics = {k: v for k, v in SHOWN.items() if means.loc[means["metric"] == k, "n"].sum()}
    cell = means.set_index(["class", "metric"])
    names = list(dict.fromkeys(means["class"]))
    total = cell.loc[(TOTAL, "dice")]
    own = folds[(folds["class"] == TOTAL) & (folds["metric"] == "dice")]
    per_case = found.cases[found.cases["class"] != TOTAL]
    classes = [name for name in names if name != TOTAL]
    return {
        "title": Path(plan.dataset).name,
        "scope": f"{len(found.folds)} folds, {per_case['case_id'].nunique()} cases of "
        f"{per_case['patient'].nunique()} patients, each scored by a network that never saw the patient",
        "headline": f"Mean Dice {number(total['mean'], 3)} [{number(total['low'], 3)}, {number(total['high'], 3)}]; "
        f"fold means from {number(own['mean'].min(), 3)} to {number(own['mean'].max(), 3)}",
        "notes": _notes(plan, found),
        "columns": [title for title, _ in metrics.values()],
        "board": [
            (
                name,
                number(cell.loc[(name, "dice"), "raw"], 3),
                [_cell(cell.loc[(name, k)], metrics[k][1]) for k in metrics],
            )
            for name in names
        ],
        "names": names,
        "folds": [_fold_row(folds, fold, names) for fold in found.folds],
        "figure": dice_figure(per_case, classes),
        "choices": [(f"fold {fold}", chosen_text(choice.options)) for fold, choice in found.nested.items()]
        + [("ensemble", chosen_text(found.choice.options))],
        "evidence": [_evidence_row(row) for row in found.choice.evidence.to_dict("records")],
        "output": plan.output.name,
        "spacing_known": found.config.get("spacing_known") is not False,
    }


def _notes(plan: Plan, found: Gathered) -> list[str]:
    """What a careful reader should know."""
    notes = []
    patients = found.cases["patient"].nunique()
    if patients < 10:
        notes.append(f"Only {patients} patients: the interval is wide, and not to be relied on.")
    if "val_interval" in plan.settings:
        notes.append("The best epoch of each fold was chosen on its own held-out patients: the scores are too good.")
    return notes


def _cell(row: pd.Series, digits: int) -> tuple[str, str]:
    ends = f"[{number(row['low'], digits)}, {number(row['high'], digits)}]" if math.isfinite(row["low"]) else ""
    return f"{number(row['mean'], digits)} ± {number(row['sd'], digits)}", ends


def _fold_row(folds: pd.DataFrame, fold: int, names: list[str]) -> tuple[int, int, list[str]]:
    own = folds[(folds["fold"] == fold) & (folds["metric"] == "dice")].set_index("class")
    cells = [f"{number(own.loc[name, 'mean'], 3)} ± {number(own.loc[name, 'sd'], 3)}" for name in names]
    return fold, int(own.loc[TOTAL, "n"]), cells


def _evidence_row(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"option": option_text(row["option"]), "dice": number(row["dice"], 4), "gain": f"{row['gain']:+.4f}"}


def option_text(option: str) -> str:
    """An option in words."""
    return {NONE: "as they are", LARGEST: "largest part alone"}.get(option, f"without parts below {option}")


def chosen_text(options: dict[str, str]) -> str:
    """A choice in words."""
    words = [f"{name}: {option_text(option)}" for name, option in options.items() if option != NONE]
    return "; ".join(words) or "masks stay as they are"
