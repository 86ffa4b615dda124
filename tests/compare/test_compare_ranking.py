"""Ranks, critical difference and stability, against Demsar's published values and plain loops."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scripts.compare.ranking import critical_difference, patient_ranks, rank_stability


def test_ranks_are_those_of_a_plain_loop_and_the_critical_difference_is_demsars():
    scores = pd.DataFrame(np.random.default_rng(0).random((14, 4)).round(1), columns=list("abcd"))  # with ties
    found = critical_difference(scores)
    expected = dict.fromkeys("abcd", 0.0)
    for _, row in scores.iterrows():
        for name in "abcd":
            better, equal = (row > row[name]).sum(), (row == row[name]).sum()
            expected[name] += (better + (equal + 1) / 2) / 14
    assert found.mean_ranks.to_dict() == pytest.approx(expected)
    assert found.mean_ranks.is_monotonic_increasing
    # Demsar 2006, section 3.2.2: four classifiers on 14 data sets
    assert found.difference == pytest.approx(1.25, abs=0.005)
    assert found.patients == 14


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_values_are_those_of_demsars_table_5(k, q):
    scores = pd.DataFrame(np.random.default_rng(0).random((12, k)), columns=[f"v{i}" for i in range(k)])
    assert critical_difference(scores).difference == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * 12)), abs=2e-3)


def test_friedmans_p_is_that_of_its_formula():
    scores = pd.DataFrame(np.random.default_rng(3).random((15, 4)), columns=list("abcd"))
    ranks = scores.rank(axis=1, ascending=False).mean()
    chi2 = 12 * 15 / (4 * 5) * ((ranks**2).sum() - 4 * 25 / 4)
    assert critical_difference(scores).p == pytest.approx(stats.chi2.sf(chi2, 3))
    assert np.isnan(critical_difference(scores[["a", "b"]]).p)
    assert critical_difference(pd.DataFrame(0.5, index=range(5), columns=list("abc"))).p == 1


def test_cliques_are_maximal_and_overlap():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.01, (60, 1))
    scores = pd.DataFrame(base + rng.normal(0, 1, (60, 5)) + [2.4, 1.8, 1.2, 0.6, -4], columns=list("abcde"))
    found = critical_difference(scores)
    for clique in found.cliques:
        assert np.ptp(found.mean_ranks[clique]) <= found.difference
        assert not any(set(clique) < set(other) for other in found.cliques)
    pairs = {frozenset((a, b)) for clique in found.cliques for a in clique for b in clique if a != b}
    near = {
        frozenset((a, b))
        for a in "abcde"
        for b in "abcde"
        if a != b and abs(found.mean_ranks[a] - found.mean_ranks[b]) <= found.difference
    }
    assert pairs == near
    assert not any("e" in clique for clique in found.cliques)


def test_lower_is_better_for_distances_and_incomplete_patients_do_not_rank():
    scores = pd.DataFrame({"a": [1.0, 2, 3], "b": [5.0, 4, np.nan]})
    ranks = patient_ranks(scores, higher_is_better=False)
    assert ranks.to_dict("list") == {"a": [1, 1], "b": [2, 2]}
    with pytest.raises(ValueError, match="1 variants with 3 patients"):
        critical_difference(scores[["a"]])


def test_stability_is_that_of_a_plain_loop():
    scores = pd.DataFrame(np.random.default_rng(1).normal([0.8, 0.79, 0.5], 0.05, (12, 3)), columns=list("abc"))
    found = rank_stability(scores, resamples=400, seed=7)
    rng, first, values = np.random.default_rng(8), 0, scores.to_numpy()
    for _ in range(400):
        means = values[rng.integers(0, 12, 12)].mean(0)
        first += means[0] > means[1]
    assert found.shares.loc["a", 1] == pytest.approx(first / 400, abs=0.08)
    assert found.shares.loc["c"].tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.shares.sum(axis=1), 1)
    assert found.mean_ranks["c"] == 3


def test_stability_of_two_patients_is_that_of_their_four_draws():
    """Drawn twice: the first patient (1/4) and both (1/2) speak for a, the second one (1/4) for b."""
    scores = pd.DataFrame({"a": [1.0, 0.0], "b": [0.0, 0.5]})
    found = rank_stability(scores, resamples=20000)
    assert found.shares.loc["a", 1] == pytest.approx(0.75, abs=0.01)
    assert found.shares.loc["b", 1] == pytest.approx(0.25, abs=0.01)
    assert found.mean_ranks.to_dict() == pytest.approx({"a": 1.25, "b": 1.75}, abs=0.02)
    assert found.kendall == 1


def test_a_clear_order_is_stable_and_equal_variants_share_the_first_rank():
    clear = pd.DataFrame({"a": np.linspace(0.8, 0.9, 8), "b": np.linspace(0.6, 0.7, 8)})
    assert rank_stability(clear).kendall == 1
    assert rank_stability(clear, higher_is_better=False).shares.loc["b", 1] == 1
    equal = rank_stability(clear.assign(b=clear["a"]))
    assert equal.shares[1].tolist() == [1, 1]
