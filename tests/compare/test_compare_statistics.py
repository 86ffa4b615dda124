"""Intervals and tests, each against a computation of its own or a published answer."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scripts.compare.statistics import holm, interval, paired_tests


def test_holm_gives_the_values_of_r():
    # R: p.adjust(c(.01, .02, .03, .04, .05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, 0.01, 0.9]) == pytest.approx([0.08, 0.03, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def bca(values, draws, rng):
    """Efron's interval, written out."""
    n, mean = len(values), values.mean()
    means = np.array([rng.choice(values, n).mean() for _ in range(draws)])
    z0 = stats.norm.ppf((means < mean).mean())
    left_out = np.array([np.delete(values, i).mean() for i in range(n)])
    gap = left_out.mean() - left_out
    a = (gap**3).sum() / (6 * (gap**2).sum() ** 1.5)
    z = stats.norm.ppf([0.025, 0.975])
    return np.quantile(means, stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))


def test_interval_is_efrons():
    values = np.random.default_rng(1).beta(8, 2, 25)  # skewed, as Dice is
    found = interval(values, range(25), resamples=10000)
    assert found == pytest.approx(bca(values, 10000, np.random.default_rng(2)), abs=0.004)
    low, high = interval(values, range(25), confidence=0.5)
    assert found[0] < low < values.mean() < high < found[1]


def test_interval_draws_patients_not_scans():
    values = np.random.default_rng(1).beta(8, 2, 12)
    once = interval(values, range(12), seed=3)
    twice = interval(np.repeat(values, 2), np.repeat(range(12), 2), seed=3)  # two equal scans of each patient
    assert twice == pytest.approx(once)
    naive = interval(np.repeat(values, 2), range(24), seed=3)
    assert naive[1] - naive[0] < 0.85 * (once[1] - once[0])


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = interval(rng.normal(0.8, 0.1, 20), range(20), resamples=300)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 200 <= 0.98


def test_interval_of_little_data():
    assert np.isnan(interval([0.5], ["a"])).all()
    assert np.isnan(interval([0.5, np.nan], ["a", "b"])).all()
    assert interval([0.5, 0.5, 0.5], "abc") == (0.5, 0.5)
    assert interval([0.5, 0.7, np.nan], "abc") == interval([0.5, 0.7], "ab")


def exact_signed_rank(difference):
    """Wilcoxon's p-value by going through every assignment of signs."""
    ranks = stats.rankdata(np.abs(difference))
    middle = ranks.sum() / 2
    observed = abs(ranks[difference > 0].sum() - middle)
    sums = [abs(np.dot(signs, ranks) - middle) for signs in itertools.product((0, 1), repeat=len(ranks))]
    return np.mean([total >= observed - 1e-9 for total in sums])


def test_tests_are_wilcoxons_and_corrected():
    rng = np.random.default_rng(5)
    table = pd.DataFrame(rng.normal(0.8, 0.05, (9, 3)), columns=list("abc"), index=[f"p{i}" for i in range(9)])
    table["c"] -= 0.1
    rows = paired_tests(table)
    assert [(row["a"], row["b"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    for row in rows:
        difference = (table[row["a"]] - table[row["b"]]).to_numpy()
        assert row["p"] == pytest.approx(exact_signed_rank(difference))
        assert row["difference"] == pytest.approx(difference.mean())
        assert row["low"] < row["difference"] < row["high"]
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
    assert rows[1]["p_holm"] < 0.05 < rows[0]["p_holm"]


def test_equal_variants_do_not_differ_and_missing_patients_are_left_out():
    table = pd.DataFrame({"a": [0.5, 0.6, 0.7, np.nan], "b": [0.5, 0.6, 0.7, 0.9]}, index=list("wxyz"))
    (row,) = paired_tests(table)
    assert (row["p"], row["p_holm"], row["difference"], row["patients"]) == (1, 1, 0, 3)
    assert paired_tests(table[["a"]]) == []
