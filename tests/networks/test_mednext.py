"""The MedNeXt encoder and decoder: scales, gradients, recomputation, other precisions, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from scripts.networks import MedNeXtDecoder, MedNeXtEncoder, YNet
from scripts.networks.mednext_blocks import ChannelNorm, UpBlock


def build(**changes) -> MedNeXtDecoder:
    torch.manual_seed(0)
    arguments = {"spatial_dims": 2, "channels": [4, 6, 8], "out_channels": 3, "blocks": 1, "deep_supervision": True}
    return MedNeXtDecoder(**{**arguments, **changes})


def build_encoder(**changes) -> MedNeXtEncoder:
    torch.manual_seed(0)
    return MedNeXtEncoder(**{"spatial_dims": 2, "in_channels": 1, "channels": [4, 6, 8], "blocks": 1, **changes})


def build_network(**changes) -> YNet:
    decoder = build(**changes)
    return YNet(encoder=build_encoder(**changes), decoder=decoder, deep_supervision=True)


def features(channels, sizes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, c, *s, generator=generator) for c, s in zip(channels, sizes, strict=True)]


def test_layer_norm_is_over_channels():
    norm = ChannelNorm(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 4, 3, 2)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = expected * norm.weight.view(-1, 1, 1, 1) + norm.bias.view(-1, 1, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_head_at_every_scale_or_at_the_finest():
    maps = features([4, 6, 8], [(16, 8), (8, 4), (4, 2)])
    assert [tuple(y.shape) for y in build()(maps)] == [(2, 3, 16, 8), (2, 3, 8, 4), (2, 3, 4, 2)]
    assert [tuple(y.shape) for y in build(deep_supervision=False)(maps)] == [(2, 3, 16, 8)]


@pytest.mark.parametrize("strides", [[[1, 1, 1], [2, 2, 1], [4, 4, 2]], [1, 1, 4], [1, [3, 2, 1], [12, 2, 1]]])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_strides_per_axis(strides, kernel_size):
    decoder = build(spatial_dims=3, strides=strides, kernel_size=kernel_size)
    sizes = [[24 // s for s in level] for level in decoder.strides]
    logits = decoder(features([4, 6, 8], sizes))
    assert [list(y.shape[2:]) for y in logits] == sizes


@pytest.mark.parametrize("strides", [[[1, 1, 1], [2, 2, 1], [4, 4, 2]], [1, 1, 4], [1, [3, 2, 1], [12, 2, 1]]])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_encoder_strides_per_axis(strides, kernel_size):
    encoder = build_encoder(spatial_dims=3, strides=strides, kernel_size=kernel_size)
    maps = encoder(torch.randn(1, 1, 24, 24, 24))
    assert [list(y.shape[1:]) for y in maps] == [
        [c, *(24 // s for s in level)] for c, level in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert encoder.divisor == encoder.strides[-1]
    assert all(k >= s for down in encoder.downs for k, s in zip(down.conv1.kernel_size, down.conv1.stride, strict=True))


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_up_block_leaves_no_gaps(stride):
    block = UpBlock(
        spatial_dims=2, in_channels=2, out_channels=2, stride=[stride] * 2, kernel_size=3, expansion_ratio=2
    )
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    kernel = block.conv1(x)
    assert kernel.shape[2:] == (4 * stride - stride + 1,) * 2
    assert (kernel - block.conv1.bias.view(1, 2, 1, 1)).abs().min() > 0


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("blocks", [0, [0, 1, 2]])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient_in_every_parameter(spatial_dims, blocks, deep_supervision):
    decoder = build(spatial_dims=spatial_dims, blocks=blocks, deep_supervision=deep_supervision)
    logits = decoder(features([4, 6, 8], [(n,) * spatial_dims for n in (8, 4, 2)]))
    sum((y * torch.randn_like(y)).sum() for y in logits).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


OPTIONS = [
    {},
    {"residual": False},
    {"resampling_residual": False},
    {"norm": "layer"},
    {"global_response_norm": True},
    {"use_checkpoint": True},
    {"spatial_dims": 3, "norm": "layer", "global_response_norm": True, "kernel_size": 5, "expansion_ratio": [1, 2, 3]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient_in_every_parameter_of_the_network(options):
    network = build_network(**options).train()
    logits = network(torch.randn(2, 1, *(16,) * options.get("spatial_dims", 2)))
    sum((y * torch.randn_like(y)).sum() for y in logits).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_network_round_trip_and_evaluation_is_deterministic(options):
    network = build_network(**options).eval()
    torch.manual_seed(5)
    other = YNet(
        encoder=MedNeXtEncoder(
            **{"spatial_dims": 2, "in_channels": 1, "channels": [4, 6, 8], "blocks": 1, **options},
        ),
        decoder=build(**options),
        deep_supervision=True,
    ).eval()
    other.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, *(16,) * options.get("spatial_dims", 2))
    assert torch.equal(network(x), network(x))
    assert torch.equal(network(x), other(x))


def saved_bytes(network, x):
    """Memory that the forward pass keeps for the backward pass, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(y.square().mean() for y in network(x))
    return sum(kept.values()), loss


def test_recomputation_gives_the_same_with_less_memory():
    x = torch.randn(2, 1, 16, 16, 16).double()  # in double precision no faster block, which keeps less, steps in
    results = []
    for use_checkpoint in (False, True):
        network = build_network(spatial_dims=3, blocks=2, use_checkpoint=use_checkpoint).double().train()
        kept, loss = saved_bytes(network, x)
        loss.backward()
        results.append((kept, loss, [p.grad for p in network.parameters()]))
    (kept, loss, gradients), (kept_less, same_loss, same_gradients) = results
    assert kept_less < 0.25 * kept
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same_gradients, strict=True))


def small_network(**changes):
    return build_network(channels=[2, 3], norm="layer", global_response_norm=True, use_checkpoint=True, **changes)


def test_compiles_in_one_graph():
    network, x = small_network().train(), torch.randn(1, 1, 8, 8)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for ours_at, theirs_at in zip(compiled(x), network(x), strict=True):
        torch.testing.assert_close(ours_at, theirs_at)


def test_traces_for_images_of_any_size():
    network = small_network().eval()
    traced = torch.jit.trace(network, torch.randn(1, 1, 16, 16))
    larger = torch.randn(1, 1, 32, 16)
    torch.testing.assert_close(traced(larger), network(larger))


def test_computes_in_16_bits():
    network, x = small_network().train(), torch.randn(1, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    sum(y.float().square().mean() for y in logits).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert (logits[0].float() - network(x)[0]).abs().mean() < 0.02


def test_state_dict_round_trip():
    decoder, maps = build(), features([4, 6, 8], [(8, 8), (4, 4), (2, 2)])
    torch.manual_seed(5)
    other = MedNeXtDecoder(spatial_dims=2, channels=[4, 6, 8], out_channels=3, blocks=1, deep_supervision=True)
    other.load_state_dict(decoder.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(decoder(maps), other(maps), strict=True))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        ({"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        ({"channels": [4]}, "expected at least two levels"),
        ({"channels": [4, 0]}, "at least one channel"),
        ({"out_channels": 0}, "out_channels is 0; expected at least 1"),
        ({"blocks": [1, 1]}, r"blocks is \[1, 1\]; expected a number of at least 0, or 3"),
        ({"blocks": -1}, "blocks is -1; expected a number of at least 0"),
        ({"expansion_ratio": [2, 0, 2]}, "expansion_ratio is .* at least 1"),
        ({"strides": [1, 2]}, r"strides is \[1, 2\]; expected 3 entries"),
        ({"strides": [1, [2, 2, 2], 4]}, "each a number or 2 of them"),
        ({"strides": [1, 2, 3]}, r"\(3, 3\) is not a multiple of \(2, 2\)"),
        ({"norm": "batch"}, "norm is 'batch'; expected one of"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        ({"in_channels": 0}, "in_channels is 0; expected at least 1"),
        ({"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        ({"channels": [4]}, "expected at least two levels"),
        ({"blocks": [1, 1, 1]}, r"blocks is \[1, 1, 1\]; expected a number of at least 0, or 2"),
        ({"expansion_ratio": [2, 2]}, r"expansion_ratio is \[2, 2\]; expected a number of at least 1, or 3"),
        ({"strides": [1, 2, 3]}, r"\(3, 3\) is not a multiple of \(2, 2\)"),
        ({"strides": [2, 4, 8]}, r"strides is \[2, 4, 8\]; expected 1 at first"),
        ({"norm": "batch"}, "norm is 'batch'; expected one of"),
    ],
)
def test_encoder_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        build_encoder(**changes)


def test_encoder_refuses_image():
    encoder = build_encoder()
    with pytest.raises(ValueError, match=r"expected \(B, 1, \*spatial\) with 2 spatial axes"):
        encoder(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"spatial size \(8, 10\); each axis must be divisible by \(4, 4\)"):
        encoder(torch.zeros(1, 1, 8, 10))
    with pytest.raises(ValueError, match="single position.*at least one axis at least twice"):
        encoder(torch.zeros(1, 1, 4, 4))
    assert len(encoder(torch.zeros(2, 1, 4, 4))) == 3  # torch normalises it in larger batches, to its bias
    assert len(build_network(norm="layer").train()(torch.zeros(1, 1, 4, 4))) == 3


def test_refuses_features():
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        build()(features([4, 6], [(8, 8), (4, 4)]))
    with pytest.raises(ValueError, match=r"single position.*divisible by \(4, 4\) and at least one axis.*twice"):
        build()([feature[:1] for feature in features([4, 6, 8], [(4, 4), (2, 2), (1, 1)])])
    assert len(build()(features([4, 6, 8], [(4, 4), (2, 2), (1, 1)]))) == 3
    assert len(build()(features([4, 6, 8], [(4, 8), (2, 4), (1, 2)]))) == 3
