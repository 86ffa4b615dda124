"""The Swin encoder against MONAI's Swin Transformer."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR
from scripts.networks import SwinEncoder


def build(**changes) -> SwinEncoder:
    torch.manual_seed(0)
    arguments = {
        "spatial_dims": 3,
        "in_channels": 1,
        "feature_size": 12,
        "depths": [1, 1],
        "num_heads": [3, 6],
        "window_size": 2,
        "stem_channels": 4,
    }
    return SwinEncoder(**{**arguments, **changes})


@pytest.mark.parametrize("use_v2", [False, True])
@pytest.mark.parametrize(("spatial_dims", "window"), [(2, 7), (3, 2), (2, [4, 2])])
def test_equals_monai(spatial_dims, window, use_v2):
    encoder = build(
        spatial_dims=spatial_dims,
        in_channels=2,
        depths=[2, 2, 2, 2],
        num_heads=[3, 6, 12, 24],
        window_size=window,
        use_v2=use_v2,
    ).eval()
    x = torch.randn(1, 2, *(32 if spatial_dims == 3 else 64,) * spatial_dims)
    with torch.no_grad():
        features, expected = encoder(x), encoder.swinViT(x, True)
    assert len(features) == 6
    assert all(torch.equal(a, b) for a, b in zip(features[1:], expected, strict=True))


def test_keys_are_those_of_swin_unetr():
    encoder = build(depths=[2, 2, 2, 2], num_heads=[3, 6, 12, 24], window_size=7)
    theirs = {k for k in SwinUNETR(in_channels=1, out_channels=2, feature_size=12).state_dict() if "swinViT" in k}
    assert {k for k in encoder.state_dict() if not k.startswith("stem.")} == theirs


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_channels_and_strides_say_what_comes(stages):
    encoder = build(spatial_dims=2, depths=[1] * stages, num_heads=[3] * stages, stem_channels=None)
    assert encoder.channels == (12, *(12 * 2**i for i in range(stages + 1)))
    assert encoder.strides == tuple((2**i,) * 2 for i in range(stages + 2))
    assert encoder.divisor == (2 ** (stages + 1),) * 2
    features = encoder(torch.randn(1, 1, 32, 64))
    assert [f.shape[1] for f in features] == list(encoder.channels)
    assert [f.shape[2:] for f in features] == [(32 // a, 64 // b) for a, b in encoder.strides]


def test_patch_per_axis():
    encoder = build(patch_size=[2, 2, 1])
    assert encoder.strides == ((1, 1, 1), (2, 2, 1), (4, 4, 2), (8, 8, 4))
    assert [f.shape[2:] for f in encoder(torch.randn(1, 1, 16, 24, 8))] == [
        (16, 24, 8),
        (8, 12, 8),
        (4, 6, 4),
        (2, 3, 2),
    ]
    with pytest.raises(ValueError, match=r"spatial size \(16, 16, 6\); each axis must be divisible by \(8, 8, 4\)"):
        encoder(torch.randn(1, 1, 16, 16, 6))


@pytest.mark.parametrize(
    "options", [{"normalize": False}, {"patch_norm": True, "qkv_bias": False}, {"downsample": "mergingv2"}]
)
def test_options_are_monais(options):
    encoder = build(depths=[1, 1, 1, 1], num_heads=[3, 6, 12, 24], **options).eval()
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = encoder.swinViT(x, options.get("normalize", True))
        assert all(torch.equal(a, b) for a, b in zip(encoder(x)[1:], expected, strict=True))
        torch.manual_seed(0)
        plain = build(depths=[1, 1, 1, 1], num_heads=[3, 6, 12, 24]).eval()
        assert not torch.equal(plain(x)[-1], encoder(x)[-1])


def test_without_stem_the_finest_feature_is_the_image():
    encoder = build(in_channels=2, stem_channels=0)
    assert encoder.channels == (2, 12, 24, 48)
    x = torch.randn(1, 2, 16, 16, 16)
    assert torch.equal(encoder(x)[0], x)
    assert not any(key.startswith("stem") for key in encoder.state_dict())


@pytest.mark.parametrize("use_v2", [False, True])
def test_gradient_in_every_parameter(use_v2):
    encoder = build(use_v2=use_v2, drop_path_rate=0.1)
    torch.manual_seed(1)
    features = encoder(torch.randn(4, 1, 16, 16, 16))
    sum((f * torch.randn_like(f)).sum() for f in features).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_checkpointing_changes_nothing():
    x = torch.randn(1, 1, 16, 16, 16)
    gradients = []
    for use_checkpoint in (False, True):
        encoder = build(use_checkpoint=use_checkpoint)
        loss = sum(f.pow(3).sum() for f in encoder(x))
        gradients.append(torch.autograd.grad(loss, list(encoder.parameters())))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1; expected 2 or 3"),
        ({"depths": []}, "depths is .*expected 1 to 4 stages"),
        ({"depths": [2, 0]}, "depths is .*expected 1 to 4 stages"),
        ({"depths": [1] * 5}, "depths is .*expected 1 to 4 stages"),
        ({"num_heads": [3]}, r"num_heads \[3\] must name one number per stage; depths has 2"),
        ({"num_heads": [3, 5]}, r"num_heads\[1\] is 5; it must divide the width 24"),
        ({"num_heads": [3, 0]}, r"num_heads\[1\] is 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0; expected a probability"),
        ({"window_size": [7, 7]}, r"window_size is \[7, 7\]; expected a positive number, or 3 of them"),
        ({"patch_size": 0}, "patch_size is 0; expected a positive number"),
        ({"stem_channels": -1}, "stem_channels is -1; expected at least 0"),
        ({"drop_rate": -0.1}, "drop_rate is -0.1; expected a probability"),
        ({"attn_drop_rate": 1}, "attn_drop_rate is 1; expected a probability"),
        ({"downsample": "pooling"}, r"downsample is 'pooling'; expected one of \['merging', 'mergingv2'\]"),
        ({"in_channels": 0}, "in_channels is 0; expected at least 1"),
        ({"feature_size": 0}, "feature_size is 0; expected at least 1"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 1, 20, 16, 16), r"spatial size \(20, 16, 16\); each axis must be divisible by \(8, 8, 8\)"),
        ((1, 1, 16, 16, 0), r"divisible by \(8, 8, 8\)"),
        ((1, 2, 16, 16, 16), r"expected \(B, 1, \*spatial\) with 3 spatial axes"),
        ((1, 1, 16, 16), r"expected \(B, 1, \*spatial\) with 3 spatial axes"),
    ],
)
def test_refuses_image(shape, match):
    with pytest.raises(ValueError, match=match):
        build()(torch.zeros(shape))
