"""What the plots show is what was computed: lines, bars and dots are read off the axes."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scripts.compare import figures
from scripts.compare.analysis import TOTAL
from scripts.compare.ranking import CriticalDifference, rank_stability


@pytest.fixture(autouse=True)
def axes(monkeypatch):
    """The axes of what is drawn, in place of its PNG."""
    monkeypatch.setattr(figures, "png", lambda figure: figure.axes)


def lines(ax):
    return [(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in ax.lines]


def test_critical_difference_bars_join_the_cliques_and_names_stand_at_their_ranks():
    ranks = pd.Series({"a": 1.2, "b": 1.9, "c": 3.4, "d": 3.5})
    found = CriticalDifference(ranks, 0.01, 1.6, [["a", "b"], ["b", "c", "d"]], 14)
    (ax,) = figures.critical_difference_figure(found)
    bars = [x for line, (x, _) in zip(ax.lines, lines(ax), strict=True) if line.get_linewidth() == 4]
    np.testing.assert_allclose(bars, [[1.2 - 0.03, 1.9 + 0.03], [1.9 - 0.03, 3.5 + 0.03]])
    stems = [x[0] for x, y in lines(ax) if len(x) == 3]
    assert stems == [1.2, 1.9, 3.4, 3.5]
    texts = [text.get_text().strip() for text in ax.texts]
    assert {"a  1.20", "b  1.90", "3.40  c", "3.50  d", "CD = 1.60"} <= set(texts)
    (scale,) = [x for x, y in lines(ax) if np.all(y == -0.95)]
    assert np.ptp(scale) == pytest.approx(1.6)
    names = {text.get_text().strip(): text for text in ax.texts}
    assert names["a  1.20"].get_position()[0] < names["3.50  d"].get_position()[0]  # the best on the left


def test_a_critical_difference_wider_than_the_scale_says_so():
    found = CriticalDifference(pd.Series({"a": 1.0, "b": 2.0}), np.nan, 1.4, [["a", "b"]], 2)
    (ax,) = figures.critical_difference_figure(found)
    assert "CD = 1.40 (wider than the scale)" in [text.get_text() for text in ax.texts]


def test_reliability_line_is_accuracy_over_confidence_of_each_bin():
    bins = {"voxels": np.array([0, 10, 40]), "confidence": np.array([0, 5.0, 36.0]), "right": np.array([0, 4.0, 38.0])}
    (ax,) = figures.reliability_figure({"mine": {"ece": (1 + 2) / 50} | bins}, ["mine", "not probed"])
    diagonal, drawn = lines(ax)
    np.testing.assert_array_equal(diagonal, [[0, 1], [0, 1]])
    np.testing.assert_allclose(drawn, [[0.5, 0.9], [0.4, 0.95]])  # the empty bin is not drawn
    assert ax.lines[1].get_label() == "mine: ECE 0.060"
    assert figures.reliability_figure({}, ["mine"]) is None


def test_stability_shows_the_shares():
    scores = pd.DataFrame({"a": np.linspace(0.8, 0.9, 8), "b": np.linspace(0.6, 0.7, 8)})
    (ax,) = figures.stability_figure(rank_stability(scores, resamples=50), ["a", "b"])
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 0], [0, 1]])
    assert [text.get_text() for text in ax.texts] == ["100%", "100%"]


def comparison():
    """Two variants on three patients."""
    rows = [
        {"variant": variant, "class": name, "case_id": case, "patient": case, "group": "", "dice": dice + shift}
        for variant, shift in (("best", 0.1), ("other", 0.0))
        for name in ("organ", TOTAL)
        for case, dice in {"p1": 0.5, "p2": 0.6, "p3": 0.8}.items()
    ]
    cell = {"mean": 0.7, "low": 0.6, "high": 0.85}
    return SimpleNamespace(
        metric="dice", variants=["best", "other"], classes=["organ", TOTAL], cases=pd.DataFrame(rows),
        costs={"best": {"parameters_m": 2.0, "case_s": None}, "other": {"parameters_m": 5.0, "case_s": None}},
        cell=lambda *_: cell,
    )  # fmt: skip


def test_boxes_hold_every_case():
    (ax, *_) = figures.box_figure(comparison())
    dots = [np.sort(np.asarray(part.get_offsets())[:, 0]) for part in ax.collections]
    np.testing.assert_allclose(dots, [[0.6, 0.7, 0.9], [0.5, 0.6, 0.8]])
    medians = [x[0] for x, y in lines(ax) if len(x) == 2 and x[0] == x[1] and np.ptp(y) > 0.5]
    assert {0.6, 0.7} <= {round(x, 6) for x in medians}


def test_pairs_set_the_best_against_the_next_patient_by_patient():
    (ax,) = figures.pair_figure(comparison())
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[0.5, 0.6], [0.6, 0.7], [0.8, 0.9]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("other", "best")


def test_costs_that_no_run_knows_are_not_drawn():
    (ax,) = figures.cost_figure(comparison())
    assert ax.get_xlabel() == "M parameters"
    points = [(float(x[0]), float(y[0])) for x, y in lines(ax) if len(x) == 1]
    assert points == [(2.0, 0.7), (5.0, 0.7)]
