"""UNETR++: its encoder and decoder in the Y."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from monai.bundle import ConfigParser
from scripts.networks import (
    CrossAttentionFusion,
    EPABlock,
    SeparateProjections,
    SharedProjection,
    SumBranches,
    SwinEncoder,
    UnbiasedProjection,
    UNETRPPDecoder,
    UNETRPPEncoder,
    YNet,
)
from support import CONFIGS

BLOCKS = {
    "shared": EPABlock,
    "separate": partial(EPABlock, convolutions=2, projection=SeparateProjections),
    "sum": partial(EPABlock, projection=UnbiasedProjection, merge=SumBranches),
}
COMMON = {
    "img_size": [8, 16, 24],
    "channels": [4, 8, 16, 16],
    "strides": [1, [1, 2, 2], [2, 4, 4], [4, 8, 8]],
    "num_heads": 2,
}
ENCODER = {"in_channels": 2, "depths": [1, 2, 1], "projected": [8, 8, 4]}
DECODER = {"out_channels": 3, "depth": 1, "projected": 8}


def encoder(**changes) -> UNETRPPEncoder:
    torch.manual_seed(0)
    return UNETRPPEncoder(**COMMON | ENCODER | changes)


def decoder(**changes) -> UNETRPPDecoder:
    torch.manual_seed(1)
    return UNETRPPDecoder(**COMMON | DECODER | changes)


def network(block=EPABlock, fusion=None, deep_supervision=True, **changes) -> YNet:
    return YNet(
        encoder=encoder(block=block),
        decoder=decoder(block=block, deep_supervision=deep_supervision),
        fusion=fusion,
        deep_supervision=deep_supervision,
        **changes,
    )


def image(batch=2) -> torch.Tensor:
    return torch.randn(batch, 2, 8, 16, 24, generator=torch.Generator().manual_seed(2))


def test_channels_and_strides_say_what_comes():
    net = encoder()
    assert net.channels == (4, 8, 16, 16)
    assert net.strides == ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8))
    assert net.divisor == (4, 8, 8)
    assert net.in_channels == 2
    shapes = [tuple(f.shape[1:]) for f in net(image())]
    assert shapes == [(4, 8, 16, 24), (8, 8, 8, 12), (16, 4, 4, 6), (16, 2, 2, 3)]


def test_heads_are_at_the_three_finest_levels():
    scales = [(2, 3, 8, 16, 24), (2, 3, 8, 8, 12), (2, 3, 4, 4, 6)]
    net = network()
    assert [tuple(y.shape) for y in net.train()(image())] == scales
    assert tuple(net.eval()(image()).shape) == scales[0]
    assert [tuple(y.shape) for y in net.decoder(net.encode(image()))] == scales
    net = network(deep_supervision=False)
    assert tuple(net.train()(image()).shape) == scales[0]
    assert len(net.decoder.heads) == 1


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_every_parameter_gets_a_gradient(block, deep_supervision):
    fusion = CrossAttentionFusion(spatial_dims=3, channels=16, clinical_features=2)
    net = network(block, fusion, deep_supervision, dropout=0.1).train()
    outputs = net(image(), torch.tensor([[0.5, float("nan")], [1.0, -1.0]]))
    sum(y.square().mean() for y in (outputs if deep_supervision else [outputs])).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_weights_go_round_and_eval_is_deterministic(block):
    first, second = network(block).eval(), network(block)
    with torch.no_grad():
        for p in second.parameters():
            p.normal_()
    assert second.load_state_dict(first.state_dict()) == ([], [])
    with torch.no_grad():
        expected = first(image())
        assert torch.equal(first(image()), expected)
        assert torch.equal(second.eval()(image()), expected)


def test_learns():
    net = network().train()
    x = image()
    target = (x[:, 0] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(net(x)[0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_clinical_variables_reach_the_mask():
    torch.manual_seed(0)
    fusion = CrossAttentionFusion(spatial_dims=3, channels=16, clinical_features=2)
    net = network(EPABlock, fusion).eval()
    with torch.no_grad():
        unknown, known = net(image()), net(image(), torch.tensor([[2.0, -1.0]]))
    assert unknown.isfinite().all()
    assert not torch.equal(unknown, known)


def test_decoder_goes_up_from_another_encoder():
    swin = SwinEncoder(in_channels=1, feature_size=12, depths=[1, 1], num_heads=[3, 6], window_size=2)
    up = UNETRPPDecoder(img_size=16, channels=swin.channels, strides=swin.strides, out_channels=2, projected=4)
    assert YNet(encoder=swin, decoder=up)(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_stem_normalises_groups_that_divide():
    assert encoder(in_channels=4).downsamples[0][1].num_groups == 4
    assert encoder(in_channels=3).downsamples[0][1].num_groups == 1


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's own InstanceNorm3d
def test_traces_compiles_and_runs_in_bfloat16():
    net = network().eval()
    with torch.no_grad():
        expected = net(image())
        traced = torch.jit.trace(net, image(batch=1), check_trace=False)
        torch.testing.assert_close(traced(image()), expected)
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(image()), expected)
        with torch.autocast("cpu", torch.bfloat16):
            low = net(image())
    assert low.dtype == torch.bfloat16
    assert (low - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("shape", [(1, 2, 8, 16, 16), (1, 2, 16, 16, 24), (1, 1, 8, 16, 24), (2, 8, 16, 24)])
def test_refuses_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"image has shape .* made for one img_size.* divisible by \(4, 8, 8\)"):
        encoder()(torch.zeros(shape))


def test_refuses_features_of_another_shape():
    features = encoder()(image())
    with pytest.raises(ValueError, match=r"features have shapes .* for images of the size \(8, 16, 24\)"):
        decoder()(features[:-1])
    with pytest.raises(ValueError, match="features have shapes"):
        decoder()([*features[:-1], features[-1][..., :2]])


SHARED_ARGUMENTS = [
    ({"spatial_dims": 2}, "spatial_dims is 2; UNETR.. is a network for volumes"),
    ({"img_size": [8, 16]}, r"img_size is \[8, 16\]; expected one number or 3 of them"),
    ({"img_size": [8, 16, 20]}, r"img_size is \[8, 16, 20\]; expected .* divisible by \(4, 8, 8\)"),
    ({"channels": [4]}, "expected at least two levels"),
    ({"channels": [4, 8, 0, 16]}, "of at least one channel"),
    ({"channels": [4, 9, 16, 16]}, "channels is 9; expected an even number divisible by num_heads 2"),
    ({"num_heads": 3}, "channels is 8; expected an even number divisible by num_heads 3"),
    ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
    ({"strides": [1, 2, 4]}, "strides is .* expected 4 entries"),
    ({"strides": [1, [2, 2], 4, 8]}, "each a number or 3 of them"),
    ({"strides": [1, 2, [4, 3, 4], 8]}, r"\(4, 3, 4\) is not a multiple of \(2, 2, 2\)"),
    ({"norm": "group"}, "norm is 'group'"),
    ({"norm": "layers"}, "norm is 'layers'; expected 'instance', 'batch'"),
    ({"block": partial(EPABlock, convolutions=0)}, "convolutions is 0"),
    ({"block": partial(EPABlock, dropout=1)}, "dropout is 1; expected a probability"),
]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *SHARED_ARGUMENTS,
        ({"in_channels": 0}, "in_channels is 0"),
        ({"depths": [1, 1]}, r"depths is \[1, 1\]; expected 3 numbers of at least 0"),
        ({"depths": [1, -1, 1]}, "depths is"),
        ({"projected": [8, 8, 8, 8]}, "projected is .* expected 3 numbers of at least 1"),
        ({"strides": [2, 2, 4, 8], "img_size": 16}, r"strides\[0\] is \(2, 2, 2\)"),
    ],
)
def test_encoder_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        encoder(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *SHARED_ARGUMENTS,
        ({"out_channels": 0}, "out_channels is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"projected": 0}, "projected is 0"),
    ],
)
def test_decoder_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        decoder(**changes)


def test_overlay_takes_patch_strides_and_block():
    config = ConfigParser.load_config_file(str(CONFIGS / "network_unetr_pp.yaml"))
    base = {"imports": ["$import scripts"], "spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    base |= {"patch_size": [32, 32, 32], "deep_supervision": True, "fusion_def": None}
    parser = ConfigParser(config | base)
    net = parser.get_parsed_content("network_def")
    assert net.encoder.channels[-1] == config["bottleneck_channels"]
    assert net.encoder.strides[1] == (4, 4, 2)
    assert isinstance(net.encoder.stages[0][0].attention.projection, SharedProjection)
    parser = ConfigParser(config | base | {"strides": [1, [4, 4, 1], [8, 8, 2], [16, 16, 4], [32, 32, 8]]})
    parser["block::convolutions"] = 2
    parser["block::projection"] = "$scripts.networks.SeparateProjections"
    net = parser.get_parsed_content("network_def")
    assert net.decoder.ups[0].stride == (4, 4, 1)
    for part in (net.encoder, net.decoder):
        assert len(part.stages[1][0].convolutions) == 2
        assert isinstance(part.stages[1][0].attention.projection, SeparateProjections)
    tumour = {"in_channels": 4, "strides": [1, 4, 8, 16, 32], "patch_size": [64, 64, 64]}
    parser = ConfigParser(config | base | tumour)
    parser["block::projection"] = "$scripts.networks.UnbiasedProjection"
    parser["block::merge"] = "$scripts.networks.SumBranches"
    net = parser.get_parsed_content("network_def")
    assert isinstance(net.encoder.stages[0][0].attention.projection, UnbiasedProjection)
    assert isinstance(net.decoder.stages[1][0].attention.merge, SumBranches)
