"""Which cases each strategy picks from pools made so that the right answer is known."""

from collections import Counter

import numpy as np
import pytest
from scripts.acquisition import DEFAULT, STRATEGIES, CaseScores, Distances, Pool, select


def case(entropy=0.1, epistemic=0.1, tta=0.1, classes=(0.1, 0.1), volumes=(0.1, 0.1), at=(0.0, 0.0), clinical=()):
    """A scored case; `at` is where it lies in feature space."""
    return CaseScores(
        scores={"entropy": entropy, "epistemic": epistemic, "tta": tta},
        class_entropy=np.array(classes, np.float32),
        class_volume=np.array(volumes, np.float32),
        features=np.array(at, np.float32),
        clinical=np.array(clinical, np.float32),
    )


def pick(strategy, cases, n=1, labelled=("old",), taken=(), seed=0, **settings):
    """Names of the picks; a labelled case far from nothing is there unless the test names its own."""
    cases = dict(cases)
    if "old" in labelled:
        first = next(iter(cases.values()))
        cases["old"] = case(clinical=np.zeros_like(first.clinical) if first else ())
    pool = Pool.of(cases, labelled=labelled, taken=taken)
    return [pool.ids[i] for i in select(strategy, pool, n, rng=np.random.default_rng(seed), **settings)]


@pytest.mark.parametrize("strategy", ["entropy", "epistemic", "tta"])
def test_uncertainty_picks_the_largest_score_of_its_kind(strategy):
    """U: the score decides."""
    cases = {name: case(at=(i, i)) for i, name in enumerate("abcd")}
    cases["c"] = case(**{strategy: 0.9})
    cases["b"] = case(**{strategy: 0.5})
    assert pick(strategy, cases, n=2) == ["c", "b"]


@pytest.mark.parametrize("strategy", ["entropy", "epistemic", "tta"])
def test_unscored_case_counts_as_one_of_median_uncertainty(strategy):
    """U: not as one of none."""
    cases = {"high": case(**{strategy: 0.9}), "new": None, "low": case(**{strategy: 0.01})}
    cases |= {f"middle_{i}": case(**{strategy: 0.5}) for i in range(3)}
    order = pick(strategy, cases, n=6)
    assert order[0] == "high"
    assert order[-1] == "low"
    assert order.index("new") in (1, 2, 3, 4)


def test_random_picks_every_case_equally_often():
    cases = {name: case(entropy=value) for name, value in zip("abcd", (0.9, 0.1, 0.1, 0.1), strict=True)}
    counts = Counter(pick("random", cases, seed=seed)[0] for seed in range(400))
    assert set(counts) == set("abcd")
    assert all(70 <= count <= 130 for count in counts.values())


def test_first_goes_by_name():
    assert pick("first", {"b": case(), "c": case(), "a": None}, n=2) == ["a", "b"]


def test_foreground_random_draws_two_thirds_by_class_and_volume():
    cases = {f"bare_{i}": case(volumes=(0.0, 0.0)) for i in range(8)}
    cases |= {"large": case(volumes=(0.3, 0.0)), "small": case(volumes=(0.1, 0.0)), "other": case(volumes=(0.0, 0.01))}
    counts = Counter(pick("foreground_random", cases, seed=s, position=s)[0] for s in range(600))
    seen = {name: counts[name] / 600 for name in cases}
    assert seen["large"] == pytest.approx(0.33 * 0.75 + 0.34 / 11, abs=0.06)
    assert seen["small"] == pytest.approx(0.33 * 0.25 + 0.34 / 11, abs=0.05)
    assert seen["other"] == pytest.approx(0.33 + 0.34 / 11, abs=0.06)  # a rare class is drawn as often as a common one
    assert sum(seen[f"bare_{i}"] for i in range(8)) == pytest.approx(0.34 * 8 / 11, abs=0.06)


def test_clasp_deals_its_picks_to_the_classes_and_to_all_of_them():
    """Once the noise has faded: the most uncertain of each class, though another class is more uncertain everywhere."""
    cases = {"overall": case(entropy=0.9)}
    cases |= {f"liver_{i}": case(entropy=0.5, classes=(0.8 - i / 100, 0.1)) for i in range(4)}
    cases |= {f"tumour_{i}": case(entropy=0.2, classes=(0.1, 0.3 - i / 100)) for i in range(4)}
    picks = pick("clasp_pe", cases, n=6, progress=1.0)
    assert Counter(name.split("_")[0] for name in picks) == {"overall": 1, "liver": 3, "tumour": 2}
    assert {"overall", "liver_0", "tumour_0"} <= set(picks)


def test_clasp_asked_one_by_one_deals_like_a_batch():
    cases = {f"liver_{i}": case(entropy=0.5, classes=(0.8 - i / 100, 0.1)) for i in range(3)}
    cases |= {f"tumour_{i}": case(entropy=0.2, classes=(0.1, 0.3 - i / 100)) for i in range(3)}
    single = [pick("clasp_pe", cases, position=place, progress=1.0)[0].split("_")[0] for place in range(6)]
    assert Counter(single) == {"liver": 4, "tumour": 2}


def test_noise_of_clasp_explores_early_and_fades():
    cases = {"best": case(entropy=0.6, classes=(0.6,))} | {f"{i}": case(0.3, classes=(0.3,)) for i in range(9)}
    early = Counter(pick("clasp_pe", cases, seed=seed, progress=0.0)[0] for seed in range(200))
    late = Counter(pick("clasp_pe", cases, seed=seed, progress=1.0)[0] for seed in range(200))
    assert early["best"] / 200 == pytest.approx(2 / 11, abs=0.09)  # in proportion to the score: 0.6 / (0.6 + 9 x 0.3)
    assert late["best"] == 200


class TestDiversity:
    def test_picks_what_is_farthest_from_the_labelled_ones(self):
        cases = {"near": case(at=(0.1, 0)), "far": case(at=(5, 5)), "between": case(at=(2, 2))}
        assert pick("diversity", cases) == ["far"]

    def test_picks_in_a_batch_differ_from_each_other(self):
        cases = {"far": case(at=(5, 5)), "its twin": case(at=(5, 4.9)), "elsewhere": case(at=(-3, 0))}
        assert pick("diversity", cases, n=2) == ["far", "elsewhere"]

    def test_keeps_away_from_what_others_are_labelling(self):
        cases = {"far": case(at=(5, 5)), "its twin": case(at=(5, 4.9)), "elsewhere": case(at=(-3, 0))}
        assert pick("diversity", cases, taken=["far"]) == ["elsewhere"]

    def test_a_patient_may_differ_where_the_images_do_not(self):
        cases = {
            "young": case(clinical=(-1.0, 0.0)),
            "same": case(clinical=(0.0, 0.1)),
            "same too": case(clinical=(0, 0)),
        }
        assert pick("diversity", cases) == ["young"]

    def test_unknown_clinical_values_are_neither_near_nor_far(self):
        nan = np.nan
        cases = {"unknown": case(clinical=(nan, nan)), "same": case(clinical=(0, 0)), "other": case(clinical=(9, 9))}
        assert pick("diversity", cases, n=3) == ["other", "unknown", "same"]

    def test_first_case_of_all_is_the_most_typical_then_the_farthest(self):
        cases = {"left": case(at=(-2, 0)), "middle": case(at=(0.1, 0)), "right": case(at=(3, 0))}
        assert pick("diversity", cases, n=2, labelled=()) == ["middle", "right"]

    def test_without_anything_known_it_is_random(self):
        cases = dict.fromkeys("abcd")
        assert {pick("diversity", cases, labelled=(), seed=seed)[0] for seed in range(40)} == set("abcd")


class TestDefault:
    def test_is_uncertain_and_diverse(self):
        assert DEFAULT == "uncertain_and_diverse"
        cases = {"uncertain, but known": case(entropy=0.9, at=(0.0, 0.1)), "far, but sure": case(0.01, at=(5, 5))}
        cases |= {"both": case(entropy=0.8, at=(4, 4)), "neither": case(entropy=0.05, at=(0.1, 0))}
        assert pick(DEFAULT, cases) == ["both"]
        assert pick("entropy", cases) == ["uncertain, but known"]
        assert pick("diversity", cases) == ["far, but sure"]

    def test_does_not_take_two_of_a_kind(self):
        cases = {"one": case(entropy=0.9, at=(4, 4)), "its twin": case(entropy=0.89, at=(4, 3.9))}
        cases |= {"elsewhere": case(entropy=0.7, at=(-4, 1))} | {f"{i}": case(at=(0.5, i / 2)) for i in range(3)}
        assert pick(DEFAULT, cases, n=2) == ["one", "elsewhere"]


@pytest.mark.parametrize("strategy", ["entropy", "epistemic", "tta", "clasp_pe", DEFAULT])
def test_cold_start_is_diversity(strategy):
    cases = {"uncertain": case(0.9, 0.9, 0.9, classes=(0.9, 0.9), at=(1, 1)), "middle": case(at=(0.1, 0))}
    cases |= {"far": case(at=(-2, -2))}
    assert pick(strategy, cases, labelled=()) == pick("diversity", cases, labelled=()) == ["middle"]


@pytest.mark.parametrize("strategy", STRATEGIES)
class TestEveryStrategy:
    def test_offers_only_what_is_free_and_each_once(self, strategy):
        cases = {f"{i}": case(entropy=i / 10, at=(i, -i)) for i in range(6)}
        picks = pick(strategy, cases, n=10, labelled=["0", "1"], taken=["2"])
        assert sorted(picks) == ["3", "4", "5"]

    def test_nothing_left(self, strategy):
        assert pick(strategy, {"a": case()}, labelled=["a"]) == []

    def test_works_before_anything_is_scored(self, strategy):
        assert sorted(pick(strategy, dict.fromkeys("abc"), n=3, labelled=())) == ["a", "b", "c"]
        assert sorted(pick(strategy, dict.fromkeys("abc"), n=3, labelled=["a"])) == ["b", "c"]

    def test_same_seed_same_picks(self, strategy):
        cases = {f"{i}": case(entropy=i / 10, at=(i, -i)) for i in range(6)}
        assert pick(strategy, cases, n=4, seed=5) == pick(strategy, cases, n=4, seed=5)


def test_distances_remember_labels_and_notice_those_taken_back():
    rng = np.random.default_rng(0)
    clinical = np.where(rng.random((30, 5)) < 0.3, np.nan, rng.normal(size=(30, 5)))
    distances = Distances(rng.normal(size=(30, 8)), clinical)
    for centres in ([3], [3, 7, 9], [3, 7, 9, 12], [7, 9], []):
        fresh = Distances(distances._image, distances._clinical).between(centres)
        expected = fresh.min(1) if centres else np.full(30, np.inf)
        np.testing.assert_allclose(distances.nearest(centres) ** 2, expected**2, rtol=1e-4, atol=1e-5)


def test_image_and_patient_count_the_same():
    rng = np.random.default_rng(1)
    image, clinical = rng.normal(size=(200, 64)), rng.normal(size=(200, 5))
    both = Distances(image, clinical).between([0])[1:, 0] ** 2
    alone = [Distances(a, b).between([0])[1:, 0] ** 2 for a, b in ((image, clinical[:, :0]), (image[:, :0], clinical))]
    np.testing.assert_allclose(both, sum(alone), rtol=1e-3)
    pairs = np.stack(
        [Distances(image[:, :0], clinical).between(range(200)), Distances(image, clinical[:, :0]).between(range(200))]
    )
    np.testing.assert_allclose((pairs**2).mean((1, 2)), 2.0, rtol=0.02)


def test_bad_input():
    pool = Pool.of({"a": case()})
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"no strategy 'entrop' \(did you mean 'entropy'\?\)"):
        select("entrop", pool, rng=rng)
    with pytest.raises(ValueError, match="at least 1 case"):
        select("random", pool, 0, rng=rng)
    with pytest.raises(ValueError, match="one row a case"):
        Distances(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"pool has 1 cases, but \{'available': 2\}"):
        Pool(**vars(pool) | {"available": np.ones(2, bool)})
