"""The model card of a bundle: what it is, how to use it, how good it is and where it fails."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from scripts.release.facts import UNKNOWN, Facts
from scripts.release.weights import parameters
from scripts.report_figures import curves_figure, dice_figure, volume_figure
from scripts.report_run import RunFiles, read_run

HERE = Path(__file__).parent
PRIVATE = {"command", "started", "device"}  # versions that say more of the machine than of the network
WORST = 5  # cases that the card lists
SHOWN = (("dice", "Dice", 3), ("iou", "IoU", 3), ("hd95", "HD95", 2), ("surface_dice", "Surface Dice", 3))


def card(facts: Facts, meta: Mapping[str, Any], name: str) -> dict[str, bytes]:
    """Write the model card with its tables and pictures.

    Cases are numbered, the worst first, since their names may be those of patients; no image is shown.

    Args:
        facts: of the run.
        meta: content of ``metadata.json``.
        name: the bundle's folder.

    Returns:
        Path in the bundle to content: ``docs/README.md``, ``docs/*.png``, ``docs/evaluation/*``.
    """
    evaluated = bool(facts.summary) or (facts.run / "log.csv").is_file()
    run = read_run(facts.run) if evaluated else None
    files = _pictures(run) if run else {}
    table = _cases(run) if run and run.per_case is not None else None
    if table is not None:
        files["docs/evaluation/per_case.csv"] = table.to_csv(index=False, lineterminator="\n").encode()
        files["docs/evaluation/summary.json"] = (json.dumps(facts.summary, indent=2) + "\n").encode()
    content = {
        "facts": facts,
        "meta": meta,
        "name": name,
        "unknown": UNKNOWN,
        "parameters": f"{parameters(facts.network) / 1e6:.2f} M",
        "cases": {part: len(cases) for part, cases in run.datalist.items()} if run else {},
        "epochs": facts.configs["train"].get("epochs") if (facts.run / "config.yaml").is_file() else None,
        "image": meta["network_data_format"]["inputs"]["image"],
        "clinical": meta["network_data_format"]["inputs"].get("clinical"),
        "spacing": facts.configs["inference"].get("spacing"),
        "scores": _scores(facts),
        "unit": "mm" if facts.summary.get("settings", {}).get("spacing_known", True) else "voxels",
        "settings": {k: v for k, v in facts.summary.get("settings", {}).items() if k != "conventions"},
        "conventions": facts.summary.get("settings", {}).get("conventions", {}),
        "worst": _worst(table) if table is not None else [],
        "groups": _groups(table) if table is not None else [],
        "pictures": sorted(Path(path).name for path in files if path.endswith(".png")),
        "versions": {key: value for key, value in facts.versions.items() if key not in PRIVATE},
    }
    files["docs/README.md"] = render("card.md", content).encode()
    return files


def render(template: str, content: Mapping[str, Any]) -> str:
    """Fill a template of this folder.

    Args:
        template: its file name.
        content: what it may name.

    Returns:
        The text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )  # Markdown, not HTML: nothing is escaped
    return environment.get_template(template).render(content)


def _pictures(run: RunFiles) -> dict[str, bytes]:
    uris = {}
    if run.log is not None:
        uris["curves"] = curves_figure(run.log, run.classes)
    if run.per_case is not None and not run.ranking.empty:
        uris["dice"] = dice_figure(run.per_case, run.classes)
        volumes = ["volume_ml_label", "volume_ml_pred"]
        if set(volumes) <= set(run.per_case) and run.per_case[volumes].notna().any(axis=None):
            uris["volumes"] = volume_figure(run.per_case, run.classes, spacing_known=run.spacing_known)
    return {f"docs/{name}.png": base64.b64decode(uri.partition(",")[2]) for name, uri in uris.items()}


def _cases(run: RunFiles) -> pd.DataFrame:
    """Scores of every case under numbers, the worst case first, with the group (vendor, site) of each."""
    place = {case: n for n, case in enumerate(run.ranking.index, 1)}
    unranked = [case for case in dict.fromkeys(run.per_case["case_id"]) if case not in place]
    place |= {case: n for n, case in enumerate(sorted(unranked), len(place) + 1)}
    listed = [case for cases in run.datalist.values() for case in cases]
    group = {str(case.get("case_id")): str(case.get("group") or "") for case in listed}
    digits = max(2, len(str(len(place))))
    table = run.per_case.assign(
        case_id=[f"case_{place[case]:0{digits}d}" for case in run.per_case["case_id"]],
        group=[group.get(case, "") for case in run.per_case["case_id"]],
    )
    return table.sort_values("case_id", kind="stable")


def _scores(facts: Facts) -> list[dict[str, Any]]:
    """A row a class, and the total; of weights without their run the Dice that came with them."""
    rows = list(facts.summary.get("classes", {}).items())
    if facts.summary.get("total"):
        rows.append(("**mean of a case**", facts.summary["total"]))
    if not rows:
        return [{"name": key, "Dice": f"{dice:.3f}"} for key, dice in facts.provenance.get("held_out_dice", {}).items()]
    return [
        {"name": name} | {title: _mean_std(row.get(key), digits) for key, title, digits in SHOWN} for name, row in rows
    ]


def _mean_std(cell: Mapping[str, Any] | None, digits: int) -> str:
    if not cell or cell.get("mean") is None:
        return "–"
    mean = f"{cell['mean']:.{digits}f}"
    return mean if cell.get("std") is None else f"{mean} ± {cell['std']:.{digits}f}"


def _worst(table: pd.DataFrame) -> list[dict[str, str]]:
    """The cases with the lowest mean Dice, and the class that is worst in each."""
    known = table.dropna(subset=["dice"])
    rows = []
    for case, scores in list(known.groupby("case_id"))[:WORST]:
        worst = scores.loc[scores["dice"].idxmin()]
        rows.append(
            {
                "case": case,
                "group": worst["group"] or "–",
                "dice": f"{scores['dice'].mean():.3f}",
                "worst": f"{worst['class']} {worst['dice']:.3f}",
            }
        )
    return rows


def _groups(table: pd.DataFrame) -> list[dict[str, str]]:
    """Mean Dice of each group, where the dataset has any."""
    if not table["group"].any():
        return []
    known = table.dropna(subset=["dice"]).assign(group=lambda rows: rows["group"].replace("", "none given"))
    per_case = known.groupby(["group", "case_id"])["dice"].mean().reset_index()
    return [
        {
            "group": group,
            "cases": str(len(rows)),
            "dice": f"{rows['dice'].mean():.3f}",
            "least": f"{rows['dice'].min():.3f}",
        }
        for group, rows in per_case.groupby("group")
    ]
