"""Scores of each group (vendor, site): which one is served worst, and how wide the gap is."""

from __future__ import annotations

import math

import pandas as pd

from scripts.compare.statistics import interval


def group_table(table: pd.DataFrame, *, higher_is_better: bool = True, seed: int = 0) -> pd.DataFrame:
    """Means of each variant in each group.

    Args:
        table: one row for each variant and case: variant, group, patient, value.
        higher_is_better: False for distances.
        seed: of the bootstrap.

    Returns:
        One row for each variant and group: variant, group, cases, patients, mean, low, high (95 % bootstrap), ``worst``
        (True in the group served worst) and ``gap``, the distance of the best from the worst group. Empty when there
        are fewer than two groups.
    """
    if table["group"].nunique() < 2:
        return pd.DataFrame(columns=["variant", "group", "cases", "patients", "mean", "low", "high", "worst", "gap"])
    rows = []
    for variant, part in table.groupby("variant", sort=False):
        own = []
        for group, cases in part.groupby("group"):
            known = cases.dropna(subset="value")
            low, high = interval(known["value"], known["patient"], seed=seed)
            own.append(
                {
                    "variant": variant,
                    "group": group or "(none)",
                    "cases": len(known),
                    "patients": known["patient"].nunique(),
                    "mean": float(known["value"].mean()) if len(known) else math.nan,
                    "low": low,
                    "high": high,
                }
            )
        means = [row["mean"] for row in own if math.isfinite(row["mean"])]
        worst = (min if higher_is_better else max)(means, default=math.nan)
        gap = max(means) - min(means) if means else math.nan
        rows += [row | {"worst": row["mean"] == worst, "gap": gap} for row in own]
    return pd.DataFrame(rows)
