"""The tables of the four papers, and how far a measurement is from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from scripts.clinical_schema import suggestion
from scripts.compare.analysis import TOTAL, Comparison

FILE = Path(__file__).with_name("papers.yaml")


@cache
def paper_tables() -> dict[str, dict[str, Any]]:
    """All tables, by ``paper/table``.

    Returns:
        Each as `papers.yaml` has it, with ``key``, ``paper`` (its name), ``arxiv`` and ``title_of_paper``.
    """
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {
        f"{name}/{table['id']}": {
            **table,
            "key": f"{name}/{table['id']}",
            "paper": paper["name"],
            "arxiv": paper["arxiv"],
            "title_of_paper": paper["title"],
        }
        for name, paper in content["papers"].items()
        for table in paper["tables"]
    }


def find_tables(name: str) -> list[dict[str, Any]]:
    """The tables that a user means.

    Args:
        name: ``paper`` for all, the name of a paper, or ``paper/table``.

    Returns:
        One table or several.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    known = paper_tables()
    if name == "paper":
        return list(known.values())
    found = [table for key, table in known.items() if name in (key, key.split("/")[0])]
    if not found:
        raise ValueError(f"There is no table {name!r}{suggestion(name, known)}. Known: paper, {', '.join(known)}.")
    return found


def against(found: Comparison, tables: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Put measured numbers beside a paper's.

    A row of the paper is matched with the variant of the same network overlay and fusion, a column with a class and
    metric. Rows without such a variant stay empty, so that the table shows what is missing.

    Args:
        found: the comparison.
        tables: of `find_tables`.

    Returns:
        Columns table, row, column, paper, measured, low, high, difference (measured minus paper), variant; numbers in
        the paper's unit.
    """
    variants = {(run.network, run.fusion): run.name for run in found.runs}
    rows = []
    for table in tables:
        for row in table["rows"]:
            variant = variants.get((row.get("network"), row.get("fusion", "none")))
            for column, printed in row["values"].items():
                metric, name = table["columns"][column].get("metric"), table["columns"][column].get("class", TOTAL)
                measured = _measured(found, variant, name, metric, table["columns"][column].get("scale", 1))
                rows.append(
                    {
                        "table": table["key"],
                        "row": row["name"],
                        "column": column,
                        "paper": printed,
                        **measured,
                        "difference": measured["measured"] - printed,
                        "variant": variant or "",
                    }
                )
    return pd.DataFrame(rows)


def _measured(found: Comparison, variant: str | None, name: str, metric: str, scale: float) -> dict[str, float]:
    if variant and metric in ("parameters_m", "gmacs"):
        value = found.costs[variant].get(metric)
        return {"measured": math.nan if value is None else value, "low": math.nan, "high": math.nan}
    cell = found.cell(variant, name, metric) if variant else {}
    keys = {"measured": "mean", "low": "low", "high": "high"}
    return {key: cell[source] * scale if cell else math.nan for key, source in keys.items()}
