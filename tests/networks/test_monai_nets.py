"""MONAI's networks cut in two: the same numbers as the whole, and parts that combine."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import AttentionUnet, DynUNet, SegResNet, SegResNetVAE, UNet
from monai.networks.nets.mednext import MedNeXt
from scripts.networks import (
    CrossAttentionFusion,
    MedNeXtDecoder,
    MonaiDecoder,
    MonaiEncoder,
    UNETRDecoder,
    YNet,
)
from torch.nn import functional as F


def unet(**changes) -> UNet:
    arguments = {"spatial_dims": 2, "in_channels": 2, "out_channels": 3, "channels": [4, 8, 16], "strides": [2, 2]}
    return UNet(**{**arguments, **changes})


def dynunet(**changes) -> DynUNet:
    arguments = {
        "spatial_dims": 2,
        "in_channels": 2,
        "out_channels": 3,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 16],
    }
    return DynUNet(**{**arguments, **changes})


def segresnet(**changes) -> SegResNet:
    arguments = {"spatial_dims": 2, "in_channels": 2, "out_channels": 3, "init_filters": 8}
    return SegResNet(**{**arguments, "blocks_down": [1, 1, 2], "blocks_up": [1, 1], **changes})


def mednext(**changes) -> MedNeXt:
    arguments = {"spatial_dims": 2, "in_channels": 2, "out_channels": 3, "init_filters": 4, "kernel_size": 3}
    blocks = {"blocks_down": [1, 1], "blocks_bottleneck": 1, "blocks_up": [1, 1], "use_residual_connection": True}
    return MedNeXt(**{**arguments, **blocks, **changes})


NETWORKS = {
    "unet": unet,
    "unet_residual": lambda: unet(num_res_units=2, act="relu", norm="batch"),
    "unet_anisotropic": lambda: unet(strides=[[2, 1], [1, 2]], channels=[4, 6, 10], kernel_size=[3, 5], bias=False),
    "unet_3d": lambda: unet(spatial_dims=3, num_res_units=1, dropout=0.1, adn_ordering="ADN"),
    "dynunet": dynunet,
    "dynunet_residual": lambda: dynunet(res_block=True, trans_bias=True, norm_name="batch", dropout=0.1),
    "dynunet_anisotropic": lambda: dynunet(
        kernel_size=[[3, 1], 3, 3, 3],
        strides=[1, [2, 1], 2, 2],
        upsample_kernel_size=[[2, 1], 2, 2],
        filters=[4, 6, 8, 10],
        deep_supervision=True,
        deep_supr_num=2,
    ),
    "dynunet_3d": lambda: dynunet(spatial_dims=3, deep_supervision=True),
    "segresnet": segresnet,
    "segresnet_deconv": lambda: segresnet(upsample_mode="deconv", dropout_prob=0.1, act="prelu", norm="instance"),
    "segresnet_3d": lambda: segresnet(spatial_dims=3, norm=["GROUP", {"num_groups": 4}]),
    "mednext": mednext,
    "mednext_ds": lambda: mednext(deep_supervision=True, global_resp_norm=True, encoder_expansion_ratio=[2, 3]),
    "mednext_3d": lambda: mednext(spatial_dims=3, kernel_size=5, use_residual_connection=False),
}


def together(network: torch.nn.Module) -> YNet:
    decoder = MonaiDecoder(network=network)
    return YNet(encoder=MonaiEncoder(network=network), decoder=decoder, deep_supervision=decoder.deep_supervision)


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        for parameter in network.parameters():  # MONAI starts some at zero, where they would show nothing
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def image(network: torch.nn.Module, size: int = 16) -> torch.Tensor:
    torch.manual_seed(1)
    axes = network.dimensions if isinstance(network, UNet) else getattr(network, "spatial_dims", 0)
    return torch.randn(2, 2, *(size,) * (axes or len(network.stem.kernel_size)))


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_monai(name):
    """In double precision, where no faster layer steps in, down to the last bit."""
    whole = make(name).double().eval()
    net, x = together(copy.deepcopy(whole)).eval(), image(whole).double()
    with torch.no_grad():
        assert torch.equal(net(x), whole(x))
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_monai(name):
    whole = make(name).double().train()
    net, x = together(copy.deepcopy(whole)).train(), image(whole).double()
    theirs = dict(whole.named_parameters())
    torch.manual_seed(3)
    expected = whole(x)
    torch.manual_seed(3)
    got = net(x)
    if net.deep_supervision and isinstance(whole, DynUNet):  # MONAI enlarges and stacks what we return as a list
        assert [[16 // n for n in y.shape[2:]] for y in got] == [list(s) for s in net.decoder.strides[: len(got)]]
        got = torch.stack([F.interpolate(y, x.shape[2:]) for y in got], dim=1)
    got, expected = ([y] if torch.is_tensor(y) else list(y) for y in (got, expected))
    weights = [torch.randn_like(y) for y in expected]
    for outputs in (expected, got):
        sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    for half in (net.encoder, net.decoder):
        for key, parameter in half.named_parameters():
            assert parameter.grad is not None, key
            torch.testing.assert_close(parameter.grad, theirs[half.monai_keys[key][0]].grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_and_strides_say_what_comes(name):
    net, x = together(make(name)).eval(), image(make(name))
    features = net.encoder(x)
    assert [f.shape[1] for f in features] == list(net.encoder.channels)
    for feature, strides in zip(features, net.encoder.strides, strict=True):
        assert list(feature.shape[2:]) == [16 // s for s in strides]
    assert net.decoder.strides == net.encoder.strides
    assert net.encoder.divisor == net.encoder.strides[-1]
    assert len(net.decoder(features)) == (1 if not net.deep_supervision else len(net.decoder.heads))


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_are_monais(name):
    whole = make(name)
    net, state = together(whole), whole.state_dict()
    named = [key for half in (net.encoder, net.decoder) for keys in half.monai_keys.values() for key in keys]
    assert sorted(named) == sorted(state)
    for half in (net.encoder, net.decoder):
        for key, tensor in half.state_dict().items():
            assert all(torch.equal(tensor, state[theirs]) for theirs in half.monai_keys[key])


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_round_trip(name):
    net, other, x = together(make(name)).eval(), together(NETWORKS[name]()).eval(), image(make(name))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))
    assert torch.equal(net(x), net(x))


def test_halves_combine_with_other_parts():
    encoder = MonaiEncoder(network=segresnet())
    assert encoder.strides == MonaiEncoder(network=mednext()).strides
    fusion = CrossAttentionFusion(spatial_dims=2, channels=32, clinical_features=5)
    options = {"spatial_dims": 2, "channels": encoder.channels, "out_channels": 3}
    decoders = [
        MedNeXtDecoder(**options, blocks=1),
        UNETRDecoder(**options, feature_size=4, blocks=[True, True, True]),
        MonaiDecoder(network=mednext(init_filters=8)),
        MonaiDecoder(network=dynunet(filters=[8, 16, 32])),
    ]
    for decoder in decoders:
        net = YNet(encoder=encoder, fusion=fusion, decoder=decoder)
        assert net(torch.randn(2, 2, 16, 16), torch.zeros(2, 5)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", ["unet", "dynunet_anisotropic"])
def test_compiles_to_one_graph(name):
    torch._dynamo.reset()
    net = together(make(name)).eval()
    x = image(make(name))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert net(x).isfinite().all()


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (SegResNetVAE(input_image_size=[16, 16], spatial_dims=2), "network is a SegResNetVAE; expected one of MONAI's"),
        (AttentionUnet(2, 1, 2, [4, 8], [2]), "network is a AttentionUnet; expected one of MONAI's UNet, DynUNet"),
    ],
)
def test_refuses_class(network, match):
    for half in (MonaiEncoder, MonaiDecoder):
        with pytest.raises(TypeError, match=match):
            half(network=network)


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (segresnet(use_conv_final=False), "use_conv_final is False.*Set it to True"),
        (segresnet(blocks_up=[1]), "SegResNet goes 2 levels down but 1 up"),
        (mednext(blocks_up=[1]), "MedNeXt goes 2 levels down but 1 up"),
    ],
)
def test_refuses_network(network, match):
    for half in (MonaiEncoder, MonaiDecoder):
        with pytest.raises(ValueError, match=match):
            half(network=network)


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("unet", (1, 2, 16, 18), r"spatial size \(16, 18\); each axis must be divisible by \(4, 4\)"),
        ("dynunet", (1, 1, 16, 16), r"expected \(B, 2, \*spatial\) with 2 spatial axes"),
        ("mednext_3d", (1, 2, 16, 16), "with 3 spatial axes"),
        ("unet", (1, 2, 4, 4), r"spatial size \(1, 1\): a single position.*twice"),
        ("dynunet", (1, 2, 4, 4), "single position"),
        ("dynunet", (2, 2, 4, 4), "single position"),
        ("mednext", (1, 2, 4, 4), "single position"),
    ],
)
def test_refuses_image(name, shape, match):
    with pytest.raises(ValueError, match=match):
        together(make(name)).eval()(torch.zeros(shape))


def test_single_position_where_normalisation_allows_it():
    for name in ("segresnet", "unet_residual"):
        assert together(make(name)).eval()(torch.zeros(1, 2, 4, 4)).shape == (1, 3, 4, 4)
    network, x = mednext().eval(), torch.randn(2, 2, 4, 4)  # group normalisation takes it in larger batches
    torch.testing.assert_close(together(network).eval()(x), network(x))


def test_refuses_features():
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        MonaiDecoder(network=unet())([torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4)])
