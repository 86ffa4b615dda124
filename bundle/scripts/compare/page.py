"""The page of a comparison, and the files beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.compare import figures, tables
from scripts.compare.analysis import LEVEL, TOTAL, Comparison
from scripts.compare.papers import against
from scripts.files import replacing
from scripts.pages import write_page

_TEMPLATE = "compare/page_template.html"


def write_comparison(
    found: Comparison,
    folder: Path,
    *,
    papers: Sequence[dict[str, Any]] = (),
    failed: Mapping[str, str] | None = None,
    budget: str = "",
) -> str:
    """Write the page, the leaderboard in three formats, all tests and groups, and the plots.

    Args:
        found: the comparison.
        folder: where to; made when missing.
        papers: tables of papers, to print the difference to.
        failed: runs that could not be finished, and why.
        budget: of every run, in words.

    Returns:
        Path of the page.
    """
    plots = _plots(found)
    paper = against(found, papers) if papers else pd.DataFrame()
    for name, text in _files(found, paper).items():
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    for name, uri in plots.items():
        if uri:
            with replacing(folder / "figures" / f"{name}.png") as part:
                part.write_bytes(base64.b64decode(uri.split(",", 1)[1]))
    content = _content(found, plots, paper, failed or {}) | {"budget": budget}
    return write_page(_TEMPLATE, content, folder / "index.html")


def _files(found: Comparison, paper: pd.DataFrame) -> dict[str, str]:
    files = {
        "leaderboard.csv": tables.leaderboard(found).to_csv(index=False),
        "leaderboard.md": tables.markdown(found),
        "leaderboard.tex": tables.latex(found),
        "tests.csv": found.tests.to_csv(index=False),
        "cases.csv": found.cases.to_csv(index=False),
    }
    if len(found.groups):
        files["groups.csv"] = found.groups.to_csv(index=False)
    if len(paper):
        files["against_paper.csv"] = paper.to_csv(index=False)
    return files


def _plots(found: Comparison) -> dict[str, str | None]:
    ranked = found.ranks is not None and found.stability is not None
    return {
        "boxes": figures.box_figure(found),
        "critical_difference": figures.critical_difference_figure(found.ranks) if ranked else None,
        "rank_stability": figures.stability_figure(found.stability, found.variants) if ranked else None,
        "pairs": figures.pair_figure(found),
        "costs": figures.cost_figure(found),
        "reliability": figures.reliability_figure(found.calibration, found.variants),
    }


def _content(
    found: Comparison, plots: Mapping[str, str | None], paper: pd.DataFrame, failed: Mapping[str, str]
) -> dict[str, Any]:
    """What the page shows, as text and data URIs."""
    first, digits = found.runs[0], 3 if found.metric not in ("hd95", "assd") else 2
    costs = {k: v for k, v in tables.COSTS.items() if any(found.costs[n].get(k) is not None for n in found.variants)}
    patients = found.cases["patient"].nunique()
    return {
        "metric": tables.TITLES[found.metric],
        "scope": f"{len(found.variants)} networks, {len(found.runs)} runs, {found.cases['case_id'].nunique()} cases of "
        f"{patients} patients",
        "headline": _headline(found, digits),
        "notes": [*found.notes, *(f"{name} could not be finished: {reason}" for name, reason in failed.items())],
        "legend": tables.LEGEND,
        "columns": [tables.heading(*column) for column in tables.columns(found)],
        "board": [_board_row(found, variant, digits) for variant in found.variants],
        "tests": [_test_row(row, digits) for row in found.tests.to_dict("records") if row["class"] == TOTAL],
        "ranks": found.ranks,
        "friedman": _p(found.ranks.p) if found.ranks and math.isfinite(found.ranks.p) else None,
        "stability": found.stability,
        "kendall": tables.number(found.stability.kendall, 2) if found.stability else None,
        "cost_columns": [title for title, _ in costs.values()],
        "costs": [
            (name, [tables.number(found.costs[name].get(k), n) for k, (_, n) in costs.items()])
            for name in found.variants
        ],
        "groups": [_group_row(row, digits) for row in found.groups.to_dict("records")],
        "calibration": found.calibration,
        "differences": found.differences,
        "paper": [_paper_row(row) for row in paper.to_dict("records")],
        "plots": plots,
        "runs": [
            (run.name, run.seed, str(run.files.folder), run.files.versions.get("command", "–")) for run in found.runs
        ],
        "spacing_known": first.files.spacing_known,
    }


def _headline(found: Comparison, digits: int) -> str:
    """The result in a sentence, which says no more than the tests do."""
    best = found.variants[0]
    mean = tables.number(found.cell(best, TOTAL, found.metric)["mean"], digits)
    same = [name for name in found.variants if found.like_the_best(name)]
    text = f"{best} has the best mean {tables.TITLES[found.metric]} ({mean})"
    if len(found.variants) < 2:
        return f"{text}; there is nothing to compare it with."
    if not same:
        return f"{text}, and differs from every other network at 5 %."
    return f"{text}; {', '.join(same)} cannot be told apart from it on these patients."


def _board_row(found: Comparison, variant: str, digits: int) -> dict[str, Any]:
    spread = found.cell(variant, TOTAL, found.metric)["seed_std"]
    return {
        "name": variant,
        "seeds": sum(run.name == variant for run in found.runs),
        "spread": tables.number(spread, digits),
        "cells": tables.cells(found, variant),
        "ece": tables.number(found.calibration.get(variant, {}).get("ece"), 3),
    }


def _test_row(row: Mapping[str, Any], digits: int) -> dict[str, Any]:
    ends = f"[{tables.number(row['low'], digits)}, {tables.number(row['high'], digits)}]"
    return {
        "a": row["a"],
        "b": row["b"],
        "patients": row["patients"],
        "difference": f"{row['difference']:+.{digits}f}",
        "ends": ends,
        "p": _p(row["p"]),
        "p_holm": _p(row["p_holm"]),
        "differs": row["p_holm"] < LEVEL,
    }


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _group_row(row: Mapping[str, Any], digits: int) -> dict[str, Any]:
    shown = {key: tables.number(row[key], digits) for key in ("mean", "low", "high", "gap")}
    return {**row, **shown}


def _paper_row(row: Mapping[str, Any]) -> dict[str, Any]:
    digits = 1 if abs(row["paper"]) >= 10 else 3
    measured = math.isfinite(row["measured"])
    return {
        **row,
        "measured": tables.number(row["measured"], digits),
        "ends": f"[{tables.number(row['low'], digits)}, {tables.number(row['high'], digits)}]"
        if math.isfinite(row["low"])
        else "",
        "difference": f"{row['difference']:+.{digits}f}" if measured else "",
    }
