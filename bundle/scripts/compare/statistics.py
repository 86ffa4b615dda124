"""How sure the numbers are: bootstrap intervals over patients, and paired tests corrected for their number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

RESAMPLES = 2000


def interval(
    values: Sequence[float] | np.ndarray,
    patients: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of a mean over cases, drawing patients, as the scans of one patient resemble each other.

    Args:
        values: one number for each case, ``(n,)``; what is not finite is left out.
        patients: whose case it is, ``(n,)``.
        confidence: share of the intervals that are to hold the true mean, in (0, 1).
        resamples: draws.
        seed: of the draws.

    Returns:
        Lower and upper end; both NaN with fewer than two patients, both the mean where all patients are equal.

    References:
        Efron, "Better bootstrap confidence intervals", 1987 (BCa), by `scipy.stats.bootstrap`.
    """
    table = pd.DataFrame({"value": np.asarray(values, float), "patient": list(patients)})
    groups = table[np.isfinite(table["value"])].groupby("patient")["value"]
    sums, counts = groups.sum().to_numpy(), groups.count().to_numpy(float)
    if len(sums) < 2:
        return math.nan, math.nan
    if np.ptp(sums / counts) < 1e-12:
        return (float(sums.sum() / counts.sum()),) * 2

    def mean(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis) / count.sum(axis)

    for method in ("BCa", "percentile"):  # BCa is not defined for every sample
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (sums, counts),
                mean,
                paired=True,
                vectorized=True,
                confidence_level=confidence,
                n_resamples=resamples,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests by Holm's step-down procedure.

    Args:
        p_values: one for each test, in [0, 1].

    Returns:
        Adjusted p-values in the same order: reject where one is at most the wanted family-wise error.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    scaled = [min(1.0, (len(order) - i) * float(p_values[k])) for i, k in enumerate(order)]
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted.tolist()


def paired_tests(scores: pd.DataFrame, *, seed: int = 0) -> list[dict[str, Any]]:
    """Compare every two variants on the same patients: Wilcoxon's signed-rank test, corrected by Holm.

    Args:
        scores: one row a patient, one column a variant; a patient without both values is left out of that pair.
        seed: of the bootstrap.

    Returns:
        For each pair ``{"a", "b", "patients", "difference", "low", "high", "p", "p_holm"}``: the mean of a minus b with
        its 95 % bootstrap interval, and the two-sided p-value before and after correction (1 where nothing differs).

    References:
        Wilcoxon, "Individual comparisons by ranking methods", 1945; Demsar, "Statistical comparisons of classifiers
        over multiple data sets", 2006.
    """
    rows = []
    for a, b in combinations(scores.columns, 2):
        both = scores[[a, b]].dropna()
        difference = (both[a] - both[b]).to_numpy(float)
        low, high = interval(difference, list(both.index), seed=seed)
        rows.append(
            {
                "a": a,
                "b": b,
                "patients": len(both),
                "difference": float(difference.mean()) if len(both) else math.nan,
                "low": low,
                "high": high,
                "p": _signed_rank(difference),
            }
        )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def _signed_rank(difference: np.ndarray) -> float:
    """Two-sided p-value; differences of zero are dropped, as Wilcoxon did."""
    difference = difference[np.abs(difference) > 1e-12]
    return float(stats.wilcoxon(difference).pvalue) if len(difference) else 1.0
