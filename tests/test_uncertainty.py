"""Uncertainty from probabilities: values that can be worked out by hand."""

import math

import pytest
import torch
from scripts.uncertainty import class_means, entropy_map, foreground_mean, mutual_information


def probabilities(foreground):
    """Two classes ``(2, *spatial)`` from the probability of the second."""
    foreground = torch.as_tensor(foreground, dtype=torch.float32)
    return torch.stack([1 - foreground, foreground])


def test_entropy_is_a_share_of_the_largest():
    assert entropy_map(probabilities([0.0, 0.5, 1.0])).tolist() == [0.0, 1.0, 0.0]
    third = torch.full((3, 4), 1 / 3)
    torch.testing.assert_close(entropy_map(third), torch.ones(4))
    expected = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    torch.testing.assert_close(entropy_map(probabilities([0.1])), torch.tensor([expected]))


def test_half_precision_and_many_slices_change_nothing():
    many = torch.rand(3, 4, 5, 37, generator=torch.Generator().manual_seed(0)).mul(9).softmax(0)
    direct = -(many * many.log()).sum(0) / math.log(3)
    torch.testing.assert_close(entropy_map(many), direct)
    torch.testing.assert_close(entropy_map(many.half()), direct, atol=1e-3, rtol=0)
    weights = 1 - many[0]
    assert foreground_mean(direct, many) == pytest.approx(float((weights * direct).sum() / weights.sum()))


def test_sure_background_alone_scores_nothing():
    background = torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1).expand(2, 3, 3, 20)
    assert foreground_mean(entropy_map(background), background) == 0


def test_samples_that_agree_hold_no_information():
    unsure = probabilities([0.5, 0.3])
    information, mean = mutual_information([unsure, unsure, unsure])
    torch.testing.assert_close(information, torch.zeros(2))
    torch.testing.assert_close(mean, unsure)


def test_sure_samples_that_contradict_each_other_hold_all_of_it():
    information, mean = mutual_information(iter([probabilities([0.0, 1.0]), probabilities([1.0, 1.0])]))
    torch.testing.assert_close(information, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(mean[1], torch.tensor([0.5, 1.0]))


def test_neither_the_size_of_the_scan_nor_of_the_organ_changes_the_score():
    small = probabilities([0.5, 1.0, 0.0])
    padded = probabilities([0.5, 1.0] + [0.0] * 100)
    doubled = probabilities([0.5, 1.0, 0.5, 1.0, 0.0])
    score = foreground_mean(entropy_map(small), small)
    assert score == pytest.approx(0.5 * 1 / 1.5)
    for other in (padded, doubled):
        assert foreground_mean(entropy_map(other), other) == pytest.approx(score)


def test_each_class_has_the_mean_over_its_own_voxels():
    values = torch.tensor([0.0, 0.2, 0.8])
    three = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(class_means(values, three), torch.tensor([0.2, 0.8]))


def test_class_that_has_no_voxel_at_all_gets_the_mean_of_the_map():
    values, sure = torch.tensor([0.0, 0.5]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(class_means(values, sure), torch.tensor([0.25]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.tensor([[3.0, -1.0], [0.0, 0.0]]), "Apply softmax"),
        (torch.tensor([[float("nan")], [0.5]]), "expected 0 to 1"),
        (torch.ones(1, 4), "at least 2 classes"),
        (torch.ones(4), "at least 2 classes"),
    ],
)
def test_what_are_no_probabilities_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        entropy_map(bad)


@pytest.mark.parametrize("count", [0, 1])
def test_disagreement_needs_two(count):
    with pytest.raises(ValueError, match="at least 2"):
        mutual_information([probabilities([0.5])] * count)
