"""Calibration error against loops, and the box within which it is measured."""

import numpy as np
import pytest
import torch
from scripts.compare.calibration import BINS, Reliability, region


def loop_ece(probabilities, label):
    """Guo's equation 3, voxel by voxel."""
    bins = [[] for _ in range(BINS)]
    for scores, true in zip(probabilities.flatten(1).T.tolist(), label.flatten().tolist(), strict=True):
        best = max(range(len(scores)), key=scores.__getitem__)
        bins[min(BINS - 1, int(np.ceil(scores[best] * BINS)) - 1)].append((scores[best], best == true))
    n = label.numel()
    return sum(len(b) / n * abs(np.mean([r for _, r in b]) - np.mean([c for c, _ in b])) for b in bins if b)


def test_ece_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, 6, 5, 4, generator=generator).double().pow(2).softmax(0)
    label = torch.randint(0, 3, (6, 5, 4), generator=generator)
    counts = Reliability()
    for part in (slice(0, 2), slice(2, 6)):  # in parts, as slabs come
        counts.add(probabilities[:, part], label[part])
    assert counts.summary()["ece"] == pytest.approx(loop_ece(probabilities, label))
    assert sum(counts.summary()["voxels"]) == 120


def test_known_answers():
    sure = torch.stack([torch.ones(4, 5), torch.zeros(4, 5)])
    for wrong, expected in ((0, 0.0), (5, 0.25), (20, 1.0)):
        label = torch.zeros(20, dtype=torch.long)
        label[:wrong] = 1
        counts = Reliability()
        counts.add(sure, label.view(4, 5))
        assert counts.summary()["ece"] == pytest.approx(expected)
    assert Reliability().summary()["ece"] is None


def test_a_calibrated_network_has_no_error():
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.uniform(0.5, 1, (200, 100)))
    label = torch.from_numpy((rng.random((200, 100)) >= p.numpy()).astype(np.int64))
    counts = Reliability()
    counts.add(torch.stack([p, 1 - p]), label)
    assert counts.summary()["ece"] < 0.01
    assert sum(counts.summary()["voxels"][:7]) == 0  # two classes: never below one half


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 3\), the label \(3, 4\)"):
        Reliability().add(torch.zeros(2, 3, 3), torch.zeros(3, 4, dtype=torch.long))


def test_region_is_the_box_of_the_truth_and_a_margin():
    label = np.zeros((30, 30, 10), np.uint8)
    label[10:12, 20, 4] = 2
    assert region(label, margin=3) == (slice(7, 15), slice(17, 24), slice(1, 8))
    assert label[region(label, margin=50)].shape == label.shape
    assert region(np.zeros((3, 3))) == (slice(None), slice(None))
