"""Scores of a case by a network: what dropout and flips change, and what they must not."""

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from scripts.acquisition import CaseScorer
from scripts.inferers import ClinicalSlidingWindowInferer
from scripts.networks import CrossAttentionFusion, MedNeXtDecoder, SwinEncoder, YNet


def network(dropout=0.3, clinical=0):
    torch.manual_seed(0)
    net = YNet(
        encoder=SwinEncoder(
            spatial_dims=3, in_channels=1, feature_size=4, depths=[2, 2], num_heads=[1, 2], window_size=3
        ),
        decoder=MedNeXtDecoder(spatial_dims=3, channels=[4, 4, 8, 16], out_channels=3, blocks=1),
        fusion=CrossAttentionFusion(spatial_dims=3, channels=16, clinical_features=clinical) if clinical else None,
        dropout=dropout,
    )
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape) * 0.3)
    return net


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def scorer():
    return CaseScorer(network=network(), inferer=SimpleInferer(), samples=3)


def test_scores_of_a_case(scorer, image):
    found = scorer(image)
    assert set(found.scores) == {"entropy", "epistemic", "tta"}
    assert all(0 < score < 1 for score in found.scores.values())
    assert found.class_entropy.shape == found.class_volume.shape == (2,)
    assert found.features.shape == (16,)
    assert found.clinical.shape == (0,)


def test_volumes_and_features_are_those_of_the_network(scorer, image):
    found = scorer(image)
    with torch.inference_mode():
        probabilities = scorer.network.eval()(image)[0].softmax(0)
        bottleneck = scorer.network.encoder(image)[-1]
    np.testing.assert_allclose(found.class_volume, probabilities[1:].flatten(1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.features, bottleneck.mean((0, 2, 3, 4)), rtol=1e-4, atol=1e-6)


def test_same_seed_same_scores_and_the_callers_random_numbers_are_left_alone(scorer, image):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two, other = scorer(image, seed=1), scorer(image, seed=1), scorer(image, seed=2)
    assert one.scores == two.scores
    assert one.scores["epistemic"] != other.scores["epistemic"]
    assert one.scores["entropy"] == other.scores["entropy"]
    torch.testing.assert_close(torch.rand(3), expected)


def test_network_is_given_back_as_it_was(image):
    net = network().train()
    CaseScorer(network=net, inferer=SimpleInferer(), samples=2)(image)
    assert all(module.training for module in net.modules())
    assert not net.encoder._forward_hooks


class Mirror(torch.nn.Module):
    """Sure of what it sees; `direction` makes it answer otherwise when the first axis is mirrored."""

    def __init__(self, direction):
        super().__init__()
        self.encoder, self.direction = Features(), direction

    def forward(self, x):
        self.encoder(x)
        ramp = torch.linspace(-1, 1, x.shape[2])[None, None, :, None, None] if self.direction else 0
        logits = 20 * (x + 2 * ramp)
        return torch.cat([-logits, logits], 1)


class Features(torch.nn.Module):
    def forward(self, x):
        return [x]


def test_flips_disagree_only_where_the_network_knows_left_from_right(image):
    scores = {}
    for direction in (False, True):
        for axes in ((0,), (1, 2)):
            scorer = CaseScorer(network=Mirror(direction), inferer=SimpleInferer(), samples=0, flip_axes=axes)
            scores[direction, axes] = scorer(image).scores["tta"]
    assert scores[True, (0,)] > 0.1
    for other in ((False, (0,)), (False, (1, 2)), (True, (1, 2))):
        assert scores[other] == pytest.approx(0, abs=1e-6)


def test_what_is_switched_off_is_missing(image):
    found = CaseScorer(network=network(0.0), inferer=SimpleInferer(), samples=0, flip_axes=())(image)
    assert set(found.scores) == {"entropy"}


def test_windows_and_clinical_values(image):
    inferer = ClinicalSlidingWindowInferer(roi_size=[16, 16, 16], sw_batch_size=2, overlap=0.25)
    scorer = CaseScorer(network=network(clinical=3), inferer=inferer, samples=2, flip_axes=(0,))
    large = torch.cat([image, image + 0.5], 2)
    one = scorer(large, torch.tensor([[0.5, -1.0, float("nan")]]))
    two = scorer(large, torch.tensor([[float("nan")] * 3]))
    np.testing.assert_array_equal(one.clinical, np.array([0.5, -1.0, np.nan], np.float32))
    assert one.scores["entropy"] != two.scores["entropy"]
    np.testing.assert_array_equal(one.features, two.features)  # of the image alone


def test_samples_without_dropout_are_refused():
    with pytest.raises(ValueError, match="has no dropout"):
        CaseScorer(network=network(0.0), inferer=SimpleInferer())
    with pytest.raises(ValueError, match="samples is 1"):
        CaseScorer(network=network(), inferer=SimpleInferer(), samples=1)
