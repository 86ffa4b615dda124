"""Fusions and the clinical encoder, where NaN, missing columns and a missing vector are handled."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.networks import AddFusion, ClinicalEncoder, ConcatFusion, CrossAttentionFusion, NoFusion

FEATURES, CHANNELS = 6, 16
GROUPS = [0, 1, 1, 1, 2, 3]  # the second variable is nominal, with three categories
FUSIONS = [AddFusion, ConcatFusion, CrossAttentionFusion]
nan, inf = math.nan, math.inf


def build(fusion, spatial_dims=3, **changes):
    torch.manual_seed(0)
    arguments = {"channels": CHANNELS, "clinical_features": FEATURES, "spatial_dims": spatial_dims, "groups": GROUPS}
    return fusion(**{**arguments, **changes})


def encoder(**changes) -> ClinicalEncoder:
    torch.manual_seed(0)
    return ClinicalEncoder(**{"features": FEATURES, "width": 8, "groups": GROUPS, **changes})


def bottleneck(spatial_dims=3, batch=2) -> torch.Tensor:
    return torch.randn(batch, CHANNELS, *(2, 3, 4)[:spatial_dims], generator=torch.Generator().manual_seed(1))


def vector(rows=2) -> torch.Tensor:
    return torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_keeps_shape_and_starts_close_to_identity(spatial_dims, fusion):
    module, x = build(fusion, spatial_dims).eval(), bottleneck(spatial_dims)
    for clinical in (vector(), None):
        y = module(x, clinical)
        assert y.shape == x.shape
        assert 0 < (y - x).std() < 0.3 * x.std()


def test_no_fusion_returns_the_bottleneck():
    x = bottleneck()
    assert NoFusion()(x, vector()) is x
    assert NoFusion()(x) is x


@pytest.mark.parametrize("clinical", [vector(), None], ids=["vector", "nothing"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradient_in_every_parameter(fusion, clinical):
    module, x = build(fusion, drop_variable=0.0, drop_vector=0.0), bottleneck()
    (module(x, clinical) * torch.randn_like(x)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nothing_known_equals_all_unknown(fusion):
    module, x = build(fusion).eval(), bottleneck()
    assert torch.equal(module(x, None), module(x, torch.full((2, FEATURES), nan)))
    assert torch.equal(module(x), module(x, torch.full((1, FEATURES), nan)))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_variable_counts_and_unknown_is_not_zero(fusion):
    module, x, clinical = build(fusion).eval(), bottleneck(), vector()
    full = module(x, clinical)
    for feature in range(FEATURES):
        unknown, zero = clinical.clone(), clinical.clone()
        unknown[:, feature], zero[:, feature] = nan, 0.0
        assert module(x, unknown).isfinite().all()
        assert not torch.allclose(module(x, unknown), full, atol=1e-7)
        assert not torch.allclose(module(x, unknown), module(x, zero), atol=1e-7)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_rows(fusion):
    module, x, clinical = build(fusion).eval(), bottleneck(batch=3), vector(3)
    assert torch.equal(module(x, clinical[:1]), module(x, clinical[:1].repeat(3, 1)))
    alone = torch.cat([module(x[i : i + 1], clinical[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(module(x, clinical), alone)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("shape", [(2, 5), (3, 6), (6,), (1, 2, 6), (0, 6)])
def test_refuses_vector_of_wrong_shape(fusion, shape):
    with pytest.raises(ValueError, match=r"expected \[2, 6\] \(one row per image\) or \[1, 6\]"):
        build(fusion)(bottleneck(), torch.zeros(shape))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_other_number_types(fusion):
    x, clinical = bottleneck(), vector()
    module = build(fusion).eval()
    torch.testing.assert_close(module(x, clinical.double()), module(x, clinical))
    assert module(x, torch.ones(1, FEATURES, dtype=torch.long)).isfinite().all()
    expected = module(x, clinical)
    torch.testing.assert_close(module.double()(x.double(), clinical).float(), expected, atol=1e-5, rtol=1e-4)
    assert module.bfloat16()(x.bfloat16(), clinical).dtype == torch.bfloat16
    outlier = torch.full((1, FEATURES), 1e300, dtype=torch.float64)  # infinite in single precision
    assert torch.equal(module(x.bfloat16(), outlier), module(x.bfloat16(), torch.full((1, FEATURES), 10.0)))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_compiles_to_one_graph(fusion):
    torch._dynamo.reset()
    module, x, clinical = build(fusion).eval(), bottleneck(), vector()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, clinical), module(x, clinical))
    torch.testing.assert_close(compiled(x), module(x))
    assert compiled(x, clinical).requires_grad


def test_infinite_is_unknown_and_outliers_are_clipped():
    module, like = encoder().eval(), torch.zeros(1, 1)
    clinical = vector(1)
    reference = clinical.clone()
    reference[0, 0] = nan
    for value in (inf, -inf):
        clinical[0, 0] = value
        assert torch.equal(module(clinical, like), module(reference, like))
    clinical[0, 0], reference[0, 0] = 1e30, 10.0
    assert torch.equal(module(clinical, like), module(reference, like))
    clinical[0, 0], reference[0, 0] = -1e30, -10.0
    assert torch.equal(module(clinical, like), module(reference, like))


def test_unknown_leaves_no_nan_in_gradients():
    module = encoder()
    clinical = vector().requires_grad_()
    with torch.no_grad():
        clinical[0] = nan
        clinical[1, 2] = inf
    module(clinical, torch.zeros(2, 1)).sum().backward()
    assert clinical.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def seen(module: ClinicalEncoder, rows: int) -> torch.Tensor:
    """Which of F known features `(rows, F)` the first layer is told to be unknown."""
    told = []
    hook = module.layers[0].register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    module(torch.ones(1, FEATURES), torch.zeros(rows, 1))
    hook.remove()
    values, unknown = told[0].chunk(2, dim=1)
    assert torch.equal(values, 1 - unknown)  # a dropped value must not leak through
    return unknown.bool()


@pytest.mark.parametrize(
    ("variable", "whole"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
)
def test_random_dropping(variable, whole):
    module = encoder(drop_variable=variable, drop_vector=whole).train()
    unknown = seen(module, 20_000)
    assert unknown.float().mean(0) == pytest.approx([1 - (1 - variable) * (1 - whole)] * FEATURES, abs=0.02)
    assert unknown.all(1).float().mean() == pytest.approx(whole + (1 - whole) * variable**4, abs=0.02)
    assert unknown[:, 1:4].eq(unknown[:, 1:2]).all()  # one variable
    if 0 < variable < 1:
        assert not torch.equal(unknown[:, 0], unknown[:, 1])
    assert not seen(module.eval(), 100).any()


def test_features_are_dropped_alone_without_groups():
    unknown = seen(encoder(groups=None, drop_variable=0.5, drop_vector=0.0).train(), 20_000)
    assert unknown.float().mean() == pytest.approx(0.5, abs=0.02)
    both = (unknown[:, 1] & unknown[:, 2]).float().mean()
    assert both == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_cross_attention_looks_at_the_whole_map(spatial_dims):
    module, x = build(CrossAttentionFusion, spatial_dims).eval(), bottleneck(spatial_dims, 1)
    other = x.clone()
    other[(0, slice(None), *(0,) * spatial_dims)] = torch.randn(CHANNELS)  # one corner changes ...
    update, updated = module(x, vector(1)) - x, module(other, vector(1)) - other
    assert (update - updated).abs().amax(1).min() > 1e-6  # ... and every location learns of it


def test_cross_attention_knows_positions():
    module = build(CrossAttentionFusion, 2).eval()
    x = torch.randn(1, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(1))
    update = module(x, vector(1)) - x  # without positions, every location would ask and get the same
    locations = update.flatten(2)[0].T  # (N, C)
    assert (torch.cdist(locations, locations) + torch.eye(16)).min() > 1e-4


def test_cross_attention_positions_are_relative_to_the_map():
    module = build(CrossAttentionFusion, 2).eval()
    for size in (1, 2, 7, 16):
        x = torch.randn(1, CHANNELS, size, size)
        assert module(x, vector(1)).shape == x.shape
    coarse, fine = module._position(torch.zeros(1, 1, 1, 2)), module._position(torch.zeros(1, 1, 3, 6))
    torch.testing.assert_close(coarse, fine[[7, 10]])  # centres of the two halves of the middle row


def test_cross_attention_equals_its_definition():
    module, x, clinical = build(CrossAttentionFusion, 2, num_heads=4).eval(), bottleneck(2, 1), vector(1)
    position = module._position(x)
    embedding = module.clinical(clinical, x)
    tokens = module.norm_map(x.flatten(2)[0].T)
    query, key = module.query(module.norm_query(embedding + position)), module.key(tokens + position)
    value, answers = module.value(tokens), []
    for head in torch.arange(CHANNELS).chunk(4):
        weights = (query[:, head] @ key[:, head].T / len(head) ** 0.5).softmax(1)
        assert weights.sum(1).detach() == pytest.approx([1.0] * 6, abs=1e-5)
        answers.append(weights @ value[:, head])
    update = embedding + module.scale * module.project(torch.cat(answers, 1))
    torch.testing.assert_close(module(x, clinical), x + update.T.reshape(x.shape), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"features": 0, "groups": []}, "features is 0; expected at least 1"),
        ({"width": 0}, "width is 0; expected at least 1"),
        ({"hidden": -1}, "hidden is -1; expected at least 1"),
        ({"drop_variable": 1.5}, r"drop_variable is 1.5; expected a probability in \[0, 1\]"),
        ({"drop_vector": -0.1}, r"drop_vector is -0.1; expected a probability in \[0, 1\]"),
        ({"groups": [0, 1]}, "groups has 2 entries .* expected 6 indices"),
        ({"groups": [-1, 0, 1, 2, 3, 4]}, "expected 6 indices >= 0"),
    ],
)
def test_clinical_encoder_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        encoder(**changes)


@pytest.mark.parametrize("num_heads", [0, 3])
def test_cross_attention_refuses_heads(num_heads):
    with pytest.raises(ValueError, match=f"num_heads is {num_heads}; it must divide the 16 channels"):
        build(CrossAttentionFusion, num_heads=num_heads)


def test_cross_attention_refuses_frequencies():
    with pytest.raises(ValueError, match="frequencies is 0; expected at least 1"):
        build(CrossAttentionFusion, frequencies=0)
