"""One self-contained HTML page about a run: how it learnt, how good it is, where it fails and what made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from scripts.pages import write_page
from scripts.report_figures import colour, curves_figure, dice_figure, tint, volume_figure
from scripts.report_overlays import case_figure, display_window, load_case
from scripts.report_run import RunFiles, read_run

_TEMPLATE = "report_template.html"
# key in the tables, title, digits, kind: the paper's six columns first
_METRICS = (
    ("dice", "Dice ↑", 3, "ratio"),
    ("iou", "mIoU ↑", 3, "ratio"),
    ("hd95", "HD95 ↓", 2, "distance"),
    ("accuracy", "Accuracy ↑", 3, "ratio"),
    ("recall", "Recall ↑", 3, "ratio"),
    ("precision", "Precision ↑", 3, "ratio"),
    ("assd", "ASSD ↓", 2, "distance"),
    ("surface_dice", "Surface Dice ↑", 3, "surface"),
)
_VOLUMES = (("volume_ml_label", "Label volume", 1, "volume"), ("volume_ml_pred", "Predicted volume", 1, "volume"))
_SETTINGS_WITH_A_PLACE = {"conventions", "spacing_known", "surface_tolerance_mm"}


def report(run: str, *, output: str | None = None) -> str:
    """Write one self-contained HTML page about a run; it opens offline and prints.

    It shows what it finds (curves, table of metrics, every case, best, median and worst case with contours,
    configuration, versions) and says what is missing.

    Args:
        run: folder of a training run or an evaluation, with log.csv or evaluation/ in it.
        output: the file to write; <run>/report.html by default.

    Returns:
        Path of the written page.

    Raises:
        FileNotFoundError: the folder is missing, or holds neither log.csv nor evaluation/.
        ValueError: a file of the run is malformed.
    """
    files = read_run(run)
    target = Path(output) if output is not None else files.folder / "report.html"
    if target.is_dir():
        raise ValueError(f"output is the folder {target}, expected the name of an HTML file to write.")
    return write_page(_TEMPLATE, page_content(files), target)


def page_content(run: RunFiles) -> dict[str, Any]:
    """Turn a run into what the page shows: numbers as text, figures as data URIs, case views and notes."""
    classes = run.classes
    has_dice = not run.ranking.empty
    return {
        "title": run.folder.name,
        "started": run.versions.get("started"),
        "command": _plain(run.versions["command"]) if "command" in run.versions else None,
        "headline": _headline(run),
        "notes": _notes(run),
        "curves": curves_figure(run.log, classes) if run.log is not None else None,
        "table": _metrics_table(run),
        "conventions": run.settings.get("conventions", {}),
        "settings": {k: _plain(v) for k, v in run.settings.items() if k not in _SETTINGS_WITH_A_PLACE},
        "spacing_known": run.spacing_known,
        "has_cases": run.per_case is not None,
        "dice_plot": dice_figure(run.per_case, classes) if has_dice else None,
        "volume_plot": _volume_plot(run, classes),
        "views": _views(run, classes),
        "legend": [
            {"name": name, "label": colour(i), "prediction": tint(i)} for i, name in enumerate(_label_names(run))
        ],
        "case_table": _case_table(run),
        "config": run.config,
        "versions": {name: _plain(value) for name, value in run.versions.items()},
    }


def _label_names(run: RunFiles) -> list[str]:
    """Names of the label values from 1: of the classes, also where overlapping regions were scored in their place."""
    config = (yaml.safe_load(run.config) if run.config else None) or {}
    return list(config["labels"][1:]) if config.get("regions") else run.classes


def _headline(run: RunFiles) -> list[dict[str, str]]:
    """The numbers on top, each with a title, a value and a small line under it."""
    tiles, total = [], run.summary.get("total", {})
    for key, title, digits in (("dice", "Mean foreground Dice", 3), ("hd95", "HD95", 2)):
        if not total.get(key):
            continue
        unit = f" {_distance_unit(run)}" if key == "hd95" else ""
        median = f"median {_number(total[key].get('median'), digits)}"
        cases = f", {run.per_case['case_id'].nunique()} cases" if key == "dice" and run.per_case is not None else ""
        tiles.append({"title": title, "value": _mean_std(total[key], digits) + unit, "note": median + cases})
    if "parameters" in run.versions:
        count = run.versions["parameters"]
        value = f"{count / 1e6:.2f} M" if isinstance(count, int | float) else str(count)
        tiles.append({"title": "Parameters", "value": value, "note": ""})
    if run.log is not None:
        note = f"{len(run.log)} epoch{'s' * (len(run.log) > 1)}"
        if "val_dice" in run.log and run.log["val_dice"].notna().any():
            note += f", best {run.log.loc[run.log['val_dice'].idxmax(), 'epoch']:.0f}"
        seconds = run.log["seconds"].sum() if "seconds" in run.log else None
        tiles.append({"title": "Training time", "value": _duration(seconds), "note": note})
    return tiles


def _notes(run: RunFiles) -> list[str]:
    """What a careful reader should know before believing the numbers."""
    if run.per_case is None:
        return []
    cases, notes = set(run.per_case["case_id"]), []
    lists = {name: {str(case.get("case_id")) for case in run.datalist.get(name, [])} for name in run.datalist}
    seen = cases & lists.get("training", set())
    if seen:
        notes.append(f"{len(seen)} of the {len(cases)} evaluated cases were also trained on.")
    elif run.log is not None and cases & lists.get("validation", set()):
        notes.append(
            "The best epoch was chosen on the same cases that are evaluated here, so the numbers are a little "
            "optimistic for new patients."
        )
    if len(cases) < 10:
        notes.append(f"Only {len(cases)} case{'s' * (len(cases) > 1)}: mean and standard deviation are uncertain.")
    return notes


def _metrics_table(run: RunFiles) -> dict[str, Any] | None:
    """The paper's table: a row per class and the total, "mean ± std" per metric with the median under it."""
    rows = [*run.summary.get("classes", {}).items()]
    if run.summary.get("total"):
        rows.append(("Total", run.summary["total"]))
    columns = [metric for metric in _METRICS if any(stats.get(metric[0]) for _, stats in rows)]
    if not columns:
        return None
    body = []
    for name, stats in rows:
        cells = []
        for key, _, digits, _ in columns:
            cell = stats.get(key) or {}
            note = f"median {_number(cell.get('median'), digits)}"
            if cell.get("n") is not None and cell["n"] != (stats.get("dice") or cell).get("n"):
                note += f", n {cell['n']}"
            cells.append({"value": _mean_std(cell, digits), "note": note if cell else ""})
        body.append({"name": name, "n": (stats.get("dice") or {}).get("n", "–"), "cells": cells})
    return {"columns": [_column_title(run, *metric) for metric in columns], "rows": body}


def _column_title(run: RunFiles, key: str, title: str, digits: int, kind: str) -> tuple[str, str]:
    """Title and unit of a column."""
    if kind == "surface":
        tolerance = run.settings.get("surface_tolerance_mm")
        return title, "" if tolerance is None else f"at {_plain(tolerance)} {_distance_unit(run)}"
    units = {"distance": _distance_unit(run), "volume": "ml" if run.spacing_known else "1000 voxels"}
    return title, units.get(kind, "")


def _volume_plot(run: RunFiles, classes: list[str]) -> str | None:
    volumes = [name for name, *_ in _VOLUMES]
    if run.per_case is None or any(v not in run.per_case for v in volumes) or run.per_case[volumes].isna().all(None):
        return None
    return volume_figure(run.per_case, classes, spacing_known=run.spacing_known)


def pick_cases(ranking: pd.Series) -> list[tuple[str, str]]:
    """Choose the cases to show.

    Args:
        ranking: mean foreground Dice by case id, worst first.

    Returns:
        (role, case id) for best, median and worst, each case at most once. Of an even number of cases the median is
        the lower of the two middle ones.
    """
    ids = list(ranking.index)
    if len(ids) < 2:
        return [("Only case", case_id) for case_id in ids]
    roles = [("Best case", ids[-1]), ("Median case", ids[(len(ids) - 1) // 2]), ("Worst case", ids[0])]
    return roles if len(ids) > 2 else [roles[0], roles[2]]


def _views(run: RunFiles, classes: list[str]) -> list[dict[str, Any]]:
    """Best, median and worst case: scores as text, and the figure or the reason why there is none."""
    ranking = run.ranking
    known = {str(c.get("case_id")): c for name in ("training", "validation") for c in run.datalist.get(name, [])}
    views = []
    for role, case_id in pick_cases(ranking):
        view = {"role": role, "case_id": case_id, "dice": _number(ranking[case_id], 3), "figure": None}
        view["scores"] = _case_scores(run, case_id)
        try:
            case = known.get(case_id)
            if case is None or "image" not in case or "label" not in case:
                raise FileNotFoundError("the run's datalist.json does not name its image and label")
            volumes = load_case(case["image"], case["label"], run.folder / "evaluation" / "masks" / f"{case_id}.nii.gz")
            view["window"] = display_window(volumes.image)[2]
            view["figure"] = case_figure(volumes, len(classes), spacing_known=run.spacing_known)
        except (FileNotFoundError, ValueError) as error:
            view["problem"] = f"No picture: {error}."
        views.append(view)
    return views


def _case_scores(run: RunFiles, case_id: str) -> str:
    parts = []
    for row in run.per_case[run.per_case["case_id"] == case_id].to_dict("records"):
        text = f"{row['class']}: Dice {_number(row['dice'], 3)}"
        if "hd95" in row:
            text += f", HD95 {_number(row['hd95'], 2)} {_distance_unit(run)}"
        parts.append(text)
    return "; ".join(parts)


def _case_table(run: RunFiles) -> dict[str, Any] | None:
    """Every case and class, the worst case first."""
    if run.per_case is None:
        return None
    columns = [metric for metric in (*_METRICS, *_VOLUMES) if metric[0] in run.per_case]
    place = {case_id: i for i, case_id in enumerate(run.ranking.index)}
    table = run.per_case.assign(_place=run.per_case["case_id"].map(place)).sort_values("_place", kind="stable")
    rows = [
        [row["case_id"], row["class"], *(_number(row[key], digits) for key, _, digits, _ in columns)]
        for row in table.to_dict("records")
    ]
    return {"columns": [_column_title(run, *metric) for metric in columns], "rows": rows}


def _distance_unit(run: RunFiles) -> str:
    return "mm" if run.spacing_known else "voxels"


def _number(value: Any, digits: int) -> str:
    """A number for the page: a dash where it is not defined, the infinity sign where it is infinite."""
    if value is None or np.isnan(float(value)):
        return "–"
    return "∞" if np.isinf(float(value)) else f"{float(value):.{digits}f}"


def _mean_std(stats: Mapping[str, Any], digits: int) -> str:
    mean, std = _number(stats.get("mean"), digits), _number(stats.get("std"), digits)
    return mean if std == "–" or stats.get("n") == 1 else f"{mean} ± {std}"


def _duration(seconds: float | None) -> str:
    if seconds is None or not np.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _plain(value: Any) -> str:
    """A JSON value as text for people: no quotes around strings, no braces around objects."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
