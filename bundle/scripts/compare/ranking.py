"""Which variant is first, how surely it stays so, and which ones cannot be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Stability:
    """How a ranking holds when patients are drawn anew.

    Attributes:
        shares: ``(variant, rank)``: share of the draws in which a variant has a rank, 1 the best; ties share the best.
        mean_ranks: mean over the draws.
        kendall: median of Kendall's tau between the ranking of a draw and that of all patients; 1: the same order.
    """

    shares: pd.DataFrame
    mean_ranks: pd.Series
    kendall: float


@dataclass(frozen=True)
class CriticalDifference:
    """Friedman's test and Nemenyi's critical difference.

    Attributes:
        mean_ranks: mean over the patients of each variant's rank, 1 the best, sorted.
        p: Friedman's p-value for "all are equal"; NaN with fewer than three variants, for which it is not defined.
        difference: mean ranks that lie further apart than this differ at 5 %.
        cliques: maximal sets of variants that cannot be told apart, each in the order of the ranks.
        patients: number of patients.
    """

    mean_ranks: pd.Series
    p: float
    difference: float
    cliques: list[list[str]]
    patients: int


def patient_ranks(scores: pd.DataFrame, *, higher_is_better: bool = True) -> pd.DataFrame:
    """Rank the variants within each patient; ties get the mean of their ranks.

    Args:
        scores: one row a patient, one column a variant; patients without all values are left out.
        higher_is_better: False for distances.

    Returns:
        Ranks in the same layout, 1 the best.
    """
    return scores.dropna().rank(axis=1, ascending=not higher_is_better, method="average")


def critical_difference(
    scores: pd.DataFrame, *, higher_is_better: bool = True, alpha: float = 0.05
) -> CriticalDifference:
    """Find variants that cannot be told apart by their mean ranks.

    Args:
        scores: as of `patient_ranks`, with at least two variants and two complete patients.
        higher_is_better: False for distances.
        alpha: family-wise error.

    Returns:
        Mean ranks, Friedman's p-value, the critical difference and the groups.

    Raises:
        ValueError: too few variants or patients.

    References:
        Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006, section 3.2.2.
    """
    ranks = patient_ranks(scores, higher_is_better=higher_is_better)
    patients, variants = ranks.shape
    if patients < 2 or variants < 2:
        raise ValueError(
            f"There are {variants} variants with {patients} patients that all of them segmented; expected at least 2 "
            "of each to rank them. Add runs, or evaluate them on the same patients."
        )
    mean_ranks = ranks.mean().sort_values(kind="stable")
    quantile = stats.studentized_range.ppf(1 - alpha, variants, np.inf) / math.sqrt(2)
    difference = float(quantile * math.sqrt(variants * (variants + 1) / (6 * patients)))
    p = math.nan
    if variants > 2:
        same = np.ptp(ranks.to_numpy(), axis=1).max() == 0
        p = 1.0 if same else float(stats.friedmanchisquare(*ranks.to_numpy().T).pvalue)
    return CriticalDifference(mean_ranks, p, difference, _cliques(mean_ranks, difference), patients)


def _cliques(mean_ranks: pd.Series, difference: float) -> list[list[str]]:
    """Maximal runs of sorted mean ranks that span no more than the critical difference, two variants or more."""
    names, values, found, reached = list(mean_ranks.index), mean_ranks.to_numpy(), [], 0
    for first in range(len(names)):
        last = int(np.searchsorted(values, values[first] + difference, side="right"))
        if last > reached and last - first > 1:
            found.append(names[first:last])
        reached = max(reached, last)
    return found


def rank_stability(
    scores: pd.DataFrame, *, higher_is_better: bool = True, resamples: int = 1000, seed: int = 0
) -> Stability:
    """Draw patients anew, rank the variants by their means each time, and see whether the order holds.

    Args:
        scores: as of `patient_ranks`.
        higher_is_better: False for distances.
        resamples: draws.
        seed: of the draws.

    Returns:
        Shares of ranks, mean ranks and Kendall's tau.

    References:
        Wiesenfarth et al., "Methods and open-source toolkit for analyzing and visualizing challenge results",
        Scientific Reports 2021.
    """
    complete = scores.dropna()
    values = complete.to_numpy(float) * (-1 if higher_is_better else 1)  # the lowest is the first
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    means = values[draws].mean(1)  # (resamples, variants)
    ranks = stats.rankdata(means.round(12), axis=1, method="min").astype(int)
    names = list(complete.columns)
    shares = pd.DataFrame(
        {rank: (ranks == rank).mean(0) for rank in range(1, len(names) + 1)}, index=pd.Index(names, name="variant")
    )
    whole = stats.rankdata(values.mean(0).round(12), method="min")
    taus = [stats.kendalltau(whole, row).statistic for row in ranks]
    taus = [tau for tau in taus if math.isfinite(tau)]
    return Stability(shares, pd.Series(ranks.mean(0), index=names), float(np.median(taus)) if taus else math.nan)
