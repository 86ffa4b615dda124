"""UTNet's encoder, decoder and attention."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from scripts.networks import NoFusion, SwinEncoder, UTNetDecoder, UTNetEncoder, YNet
from scripts.networks.utnet_attention import (
    AttentionBlock,
    AttentionOptions,
    AttentionUpsampling,
    RelativePositionBias,
    fused_attention,
    plain_attention,
)
from scripts.networks.utnet_blocks import AttentionUp, ConvUp
from support import CONFIGS

CHANNELS = (4, 8, 16, 32, 64)


def encoder(**changes) -> UTNetEncoder:
    torch.manual_seed(0)
    return UTNetEncoder(**{"in_channels": 1, "feature_size": 4, "reduce_size": 2, **changes})


def decoder(**changes) -> UTNetDecoder:
    torch.manual_seed(1)
    return UTNetDecoder(**{"channels": CHANNELS, "out_channels": 3, "reduce_size": 2, **changes})


def net(deep_supervision=True, **decoder_changes) -> YNet:
    up = decoder(deep_supervision=deep_supervision, **decoder_changes)
    return YNet(encoder=encoder(), decoder=up, deep_supervision=deep_supervision)


def image(*spatial, batch=2, channels=1) -> torch.Tensor:
    return torch.randn(batch, channels, *(spatial or (32, 32)), generator=torch.Generator().manual_seed(2))


def assert_gradients(module):
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("changes", "divisor"),
    [
        ({}, 32),
        ({"attention_levels": []}, 16),
        ({"attention_levels": [0, 2]}, 16),
        ({"attention_levels": [3], "reduce_size": 3}, 48),
        ({"rel_pos": False, "reduce_size": 5}, 16),
    ],
)
def test_channels_strides_and_divisor_say_what_comes(changes, divisor):
    net = encoder(**changes)
    assert net.channels == CHANNELS
    assert net.strides == tuple((2**i, 2**i) for i in range(5))
    assert net.divisor == (divisor, divisor)
    features = net(image(divisor, 2 * divisor))
    assert [tuple(f.shape[1:]) for f in features] == [
        (c, divisor // s, 2 * divisor // s) for c, (s, _) in zip(net.channels, net.strides, strict=True)
    ]


def test_attention_stands_where_it_is_named():
    stages = encoder(attention_levels=[0, 2], num_blocks=[1, 9, 3, 9, 9]).stages
    assert [sum(isinstance(part, AttentionBlock) for part in stage) for stage in stages] == [1, 0, 3, 0, 0]
    assert [type(up) for up in decoder(attention_levels=[0, 2, 4]).ups] == [AttentionUp, ConvUp, AttentionUp, ConvUp]
    assert [type(up) for up in decoder().ups] == [ConvUp, AttentionUp, AttentionUp, AttentionUp]


def test_levels_halve_by_pooling_or_stride():
    assert [type(stage[0]).__name__ for stage in encoder(strided_levels=[2, 4]).stages] == [
        "ResidualBlock",
        "MaxPool2d",
        "ResidualBlock",
        "MaxPool2d",
        "ResidualBlock",
    ]
    assert [f.shape[2] for f in encoder(strided_levels=[1, 2, 3, 4])(image())] == [32, 16, 8, 4, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_levels": [0, 1, 2, 3, 4]},
        {"attention_levels": [1, 3], "projection": "maxpool", "strided_levels": [3, 4], "num_blocks": 2},
        {"attention_levels": [], "in_channels": 3},
        {"rel_pos": False, "num_heads": [1, 3, 5, 7, 9]},
    ],
)
def test_encoder_has_a_gradient_in_every_parameter(changes):
    net = encoder(**changes).train()
    features = net(image(64, 32, channels=net.in_channels))
    sum((f * torch.randn_like(f)).sum() for f in features).backward()
    assert_gradients(net)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"attention_levels": [0, 1, 2, 3]}, {"attention_levels": [], "strides": [1, [2, 1], [4, 2], [8, 2], 16]}, {}],
)
def test_decoder_gives_logits_of_the_size_of_the_image(changes, deep_supervision):
    net = decoder(deep_supervision=deep_supervision, **changes).train()
    features = [image(32 // a, 64 // b, channels=c) for c, (a, b) in zip(net.channels, net.strides, strict=True)]
    logits = net(features)
    assert [tuple(y.shape) for y in logits] == [(2, 3, 32, 64)] * (4 if deep_supervision else 1)
    sum((y * torch.randn_like(y)).sum() for y in logits).backward()
    assert_gradients(net)


def test_decoder_goes_with_other_encoders():
    swin = SwinEncoder(spatial_dims=2, in_channels=1, feature_size=12, depths=[1, 1], num_heads=[3, 3], window_size=2)
    assert YNet(encoder=swin, decoder=decoder(channels=swin.channels))(image()).shape == (2, 3, 32, 32)
    coarse = decoder(channels=[4, 8], strides=[2, 4], deep_supervision=True, attention_levels=[0])
    assert [y.shape[2:] for y in coarse([image(16, 16, channels=4), image(8, 8, channels=8)])] == [(32, 32)]


def test_y():
    network, x = net(), image()
    assert [tuple(y.shape) for y in network.train()(x)] == [(2, 3, 32, 32)] * 4
    features = network.eval().encode(x)
    assert torch.equal(network(x), network.decoder(features)[0])
    assert torch.equal(network(x), network(x))
    other = YNet(encoder=encoder(), decoder=decoder(deep_supervision=True), deep_supervision=True).eval()
    torch.nn.init.zeros_(other.decoder.heads[0].weight)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), network(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(x) - network.float()(x)).abs().mean() < 0.1 * network(x).float().std()


def test_traced_and_compiled():
    network, x = net(deep_supervision=False).eval(), image()
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(torch.jit.trace(network, x)(x), expected)
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("rel_pos", [False, True])
def test_plain_and_fused_attention_agree(rel_pos):
    generator = torch.Generator().manual_seed(0)
    position = RelativePositionBias(2, 3)
    inputs = [torch.randn(2, 2, n, 5, generator=generator, requires_grad=True) for n in (54, 9, 9)]
    results = []
    for attention in (plain_attention, fused_attention):
        out = attention(*inputs, position() if rel_pos else None, (6, 9), 0.0)
        parameters = [*inputs, *([position.table] if rel_pos else [])]
        results.append([out, *torch.autograd.grad(out.pow(2).sum(), parameters)])
    torch.testing.assert_close(*results)


def test_attention_is_that_of_the_paper():
    """Softmax of (q k + position of the pixel's cell relative to the key) / sqrt(d), head by head, pixel by pixel."""
    r, d, heads, height, width = 2, 3, 2, 4, 6
    position = RelativePositionBias(heads, r)
    q, k, v = (torch.randn(1, heads, n, d) for n in (height * width, r * r, r * r))
    out = plain_attention(q, k, v, position(), (height, width), 0.0)
    for head in range(heads):
        for y, x in [(0, 0), (1, 3), (3, 2), (2, 5)]:
            row, column = y * r // height, x * r // width
            scores = [
                q[0, head, y * width + x] @ k[0, head, i * r + j]
                + position.table[(row - i + r - 1) * (2 * r - 1) + column - j + r - 1, head]
                for i in range(r)
                for j in range(r)
            ]
            expected = torch.softmax(torch.stack(scores) / d**0.5, 0) @ v[0, head]
            torch.testing.assert_close(out[0, head, y * width + x], expected)


@pytest.mark.parametrize("projection", ["interp", "maxpool"])
def test_maps_smaller_than_the_grid_are_enlarged(projection):
    options = AttentionOptions(reduce_size=5, projection=projection, rel_pos=False)
    assert AttentionBlock(8, 3, options)(image(4, 2, channels=8)).shape == (2, 8, 4, 2)
    assert AttentionUpsampling(8, 6, 4, options)(image(2, 3, channels=8), image(4, 6, channels=6)).shape[2:] == (4, 6)


def test_dropout_only_while_training():
    options = AttentionOptions(reduce_size=2, attn_drop=0.5, proj_drop=0.5)
    block, x = AttentionBlock(8, 2, options), image(4, 4, channels=8)
    block.load_state_dict(AttentionBlock(8, 2, AttentionOptions(reduce_size=2)).state_dict())
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        (encoder, {"spatial_dims": 3}, "spatial_dims is 3; this network is for planes"),
        (encoder, {"in_channels": 0}, "in_channels is 0; expected at least 1"),
        (encoder, {"feature_size": 0}, "feature_size is 0; expected at least 1"),
        (encoder, {"attention_levels": [1, 5]}, r"attention_levels is \[1, 5\]; expected levels from 0 to 4"),
        (encoder, {"strided_levels": [0]}, r"strided_levels is \[0\]; expected levels from 1 to 4"),
        (encoder, {"num_blocks": [1, 1]}, r"num_blocks is \[1, 1\]; expected a number of at least 1, or 5"),
        (encoder, {"num_blocks": 0}, "num_blocks is 0; expected a number of at least 1"),
        (encoder, {"num_heads": [4, 4, 4, 4, 0]}, "num_heads is .*; expected a number of at least 1"),
        (encoder, {"num_heads": 9}, "num_heads is .*; level 1 has 8 channels, fewer than 9 heads"),
        (encoder, {"reduce_size": 0}, "reduce_size is 0; expected at least 1"),
        (encoder, {"projection": "conv"}, "projection is 'conv'; expected one of .*interp.*maxpool"),
        (encoder, {"attn_drop": 1.0}, "attn_drop is 1.0; expected a probability"),
        (encoder, {"proj_drop": -0.1}, "proj_drop is -0.1; expected a probability"),
        (decoder, {"spatial_dims": 1}, "spatial_dims is 1"),
        (decoder, {"channels": [4]}, "expected at least two levels"),
        (decoder, {"channels": [4, 0]}, "at least one channel"),
        (decoder, {"out_channels": 0}, "out_channels is 0; expected at least 1"),
        (decoder, {"strides": [1, 2]}, r"strides is \[1, 2\]; expected 5 entries"),
        (decoder, {"strides": [1, 2, 4, 8, [16, 16, 16]]}, "each a number or 2 of them"),
        (decoder, {"attention_levels": [-1]}, r"attention_levels is \[-1\]; expected levels from 0 to 4"),
        (decoder, {"num_heads": [4] * 5}, "num_heads is .*, or 4"),
        (decoder, {"attention_levels": [0], "num_heads": 5}, "level 0 has 4 channels, fewer than 5 heads"),
        (decoder, {"projection": "linear"}, "projection is 'linear'"),
    ],
)
def test_refuses_argument(part, changes, match):
    with pytest.raises(ValueError, match=match):
        part(**changes)


def test_refuses_image_and_features():
    with pytest.raises(ValueError, match=r"spatial size \(32, 48\); each axis must be divisible by \(32, 32\)"):
        encoder()(image(32, 48))
    with pytest.raises(ValueError, match=r"expected \(B, 1, \*spatial\) with 2 spatial axes"):
        encoder()(image(channels=2))
    with pytest.raises(ValueError, match=r"expected \(B, 1, \*spatial\) with 2 spatial axes"):
        encoder()(torch.zeros(1, 1, 32, 32, 32))
    with pytest.raises(ValueError, match="got 1 features; expected 5"):
        decoder()([image(channels=4)])
    features = [image(48 // 2**i, 48 // 2**i, channels=c) for i, c in enumerate(CHANNELS)]
    assert decoder(attention_levels=[3])(features)[0].shape[2:] == (48, 48)
    with pytest.raises(ValueError, match=r"feature 3 has spatial size \(6, 6\).*divisible by \[32, 32\]"):
        decoder(attention_levels=[3], reduce_size=4)(features)


@pytest.mark.parametrize(
    ("changes", "size", "sizes"),
    [
        ({"rel_pos": False}, (27, 18), [(27, 18), (13, 9), (6, 4), (3, 2), (1, 1)]),
        ({"attention_levels": [3], "reduce_size": 3}, (27, 25), [(27, 25), (13, 12), (6, 6), (3, 3), (1, 1)]),
        ({"rel_pos": False, "strided_levels": [1, 4]}, (27, 18), [(27, 18), (14, 9), (7, 4), (3, 2), (2, 1)]),
    ],
)
def test_odd_maps_are_halved_as_the_authors_do(changes, size, sizes):
    features = encoder(**changes)(image(*size))
    assert [tuple(f.shape[2:]) for f in features] == sizes
    up = {name: changes[name] for name in changes if name != "strided_levels"}
    assert decoder(**up)(features)[0].shape[2:] == size
    with pytest.raises(ValueError, match="divisible by"):
        encoder(**changes)(image(1, 18))


def from_yaml(**overrides) -> YNet:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("inference", "network_utnet", "fusion_none")])
    parser.update(overrides)
    return parser.get_parsed_content("network_def")


@pytest.mark.parametrize(
    ("overrides", "millions"),  # parameters
    [
        ({}, 10.020),
        ({"attention_levels": [2, 3, 4]}, 10.113),
        ({"decoder_attention_levels": []}, 10.946),
        ({"rel_pos": False, "projection": "maxpool"}, 10.014),
        ({"reduce_size": 16, "deep_supervision": False}, 10.039),
    ],
)
def test_ablations_of_the_paper_are_overrides_of_the_yaml(overrides, millions):
    with torch.device("meta"):
        network = from_yaml(**overrides)
    assert isinstance(network.fusion, NoFusion)
    heads = len(network.decoder.heads)
    assert heads == (4 if network.deep_supervision else 1)
    classes = network.decoder.heads[0].out_channels
    widths = [head.in_channels for head in network.decoder.heads]
    excess = (classes - 4) * (sum(widths) + heads)  # the figures are for 4 classes
    assert sum(p.numel() for p in network.parameters()) - excess == pytest.approx(1e6 * millions, abs=1e3)
