import dataclasses

import numpy as np
import pytest
from plan_support import fingerprint_of, geometry, record, two_balls
from scripts.plan.classes import fixed_order, plan_components, plan_mirroring, plan_sampling
from scripts.plan.geometry import plan_grid
from scripts.plan.measure import class_facts

NAMES = ("background", "one", "pair", "small")


def organ(i):
    """One piece in the middle, two pieces to its right, and a small thing that wanders."""
    rng = np.random.default_rng(i)
    label = two_balls((40, 20, 20), {1: [(10, 10, 10)], 2: [(25, 5, 5), (33, 14, 14)]}, 4)
    place = rng.integers(1, [38, 18, 18])
    label[tuple(slice(p, p + 2) for p in place)] = 3
    return record(rng.normal(size=label.shape), label, classes=4)


@pytest.fixture(scope="module")
def data():
    return fingerprint_of([organ(i) for i in range(20)], NAMES)


def test_components_volume_and_place_of_a_class():
    label = two_balls((20, 20, 20), {1: [(4, 4, 4), (14, 14, 14)]}, 3).astype(np.int32)
    label[0, 0, 19] = 1
    facts = class_facts(label, 3, (1.0, 2.0, 0.5))
    assert list(facts) == ["1"]
    assert facts["1"]["components"] == 3
    count = int((label == 1).sum())
    assert facts["1"]["voxels"] == count
    assert facts["1"]["ml"] == pytest.approx(count / 1000)
    assert facts["1"]["largest"] == pytest.approx((count - 1) / 2 / count)
    assert facts["1"]["extent"] == [17.0, 34.0, 9.0]
    assert facts["1"]["centre"] == pytest.approx(np.argwhere(label == 1).mean(0) * [1, 2, 0.5], abs=1e-3)


def test_voxels_that_touch_at_a_corner_are_one_component():
    label = np.zeros((4, 4, 4), np.int32)
    label[0, 0, 0] = label[1, 1, 1] = 1
    assert class_facts(label, 2, (1, 1, 1))["1"]["components"] == 1


def test_a_class_of_two_pieces_is_not_cut_down_to_one(data):
    kept = plan_components(data)
    assert 1 in kept.value
    assert 2 not in kept.value
    assert "pair in 0 of 20" in kept.reason


def test_classes_of_overlapping_regions_are_left_whole(data):
    kept = plan_components(dataclasses.replace(data, regions={"all": [1, 2, 3], "two": [2, 3], "three": [3]}))
    assert kept.value == []
    assert "hole in the regions" in kept.reason


def test_small_and_rare_classes_are_sampled_twice_as_often(data):
    assert plan_sampling(data).value == [1, 1, 1, 2]
    rare = [r if i < 8 else r | {"classes": {k: v for k, v in r["classes"].items() if k != "2"}} for i, r in
            enumerate(data.records)]  # fmt: skip
    assert plan_sampling(fingerprint_of(rare, NAMES)).value == [1, 1, 2, 2]


def test_no_mirroring_where_classes_have_an_order(data):
    assert "pair towards the right of one in 100%" in fixed_order(data, 0)
    assert fixed_order(data, 1) == ""
    grid = plan_grid(fingerprint_of([geometry((40, 20, 20), (1.1, 1.1, 1.1))]))
    assert plan_mirroring(data, grid, 3).value == [1, 2]
    assert plan_mirroring(data, grid, 2).value == [1]


def test_no_mirroring_across_thick_slices():
    single = fingerprint_of([record(np.zeros((9, 9, 9)), two_balls((9, 9, 9), {1: [(4, 4, 4)]}))] * 6)
    cube = plan_grid(fingerprint_of([geometry((90, 90, 90), (1.1, 1.1, 1.1))]))
    flat = plan_grid(fingerprint_of([geometry((90, 90, 9), (1.1, 1.1, 9.0))]))
    assert plan_mirroring(single, cube, 3).value == [0, 1, 2]
    assert plan_mirroring(single, flat, 3).value == [0, 1]


def test_the_order_follows_the_axes_of_the_plan(data):
    grid = plan_grid(fingerprint_of([geometry((20, 200, 200), (5.0, 0.8, 0.8))]))  # sagittal: R is last
    assert grid.axcodes == "ASR"
    assert plan_mirroring(data, grid, 3).value == [0, 1]
