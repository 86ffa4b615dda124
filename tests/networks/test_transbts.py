"""TransBTS."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import TransformerBlock
from scripts.networks import TransBTSDecoder, TransBTSEncoder, YNet

ENCODER = {
    "spatial_dims": 2,
    "in_channels": 2,
    "img_size": [16, 8],
    "channels": [8, 8, 16],
    "blocks": [1, 1, 2],
    "hidden_size": 12,
    "mlp_dim": 16,
    "num_layers": 2,
    "num_heads": 3,
}


def encoder(**changes) -> TransBTSEncoder:
    torch.manual_seed(0)
    return TransBTSEncoder(**ENCODER | changes)


def decoder(**changes) -> TransBTSDecoder:
    torch.manual_seed(0)
    arguments = {"spatial_dims": 2, "channels": [8, 8, 12], "out_channels": 3, "hidden_channels": 6}
    return TransBTSDecoder(**arguments | changes)


def network(**changes) -> YNet:
    spatial_dims = changes.get("spatial_dims", 2)
    return YNet(encoder=encoder(**changes), decoder=decoder(spatial_dims=spatial_dims))


@pytest.mark.parametrize("size", [[16, 8], [8, 8, 4]])
def test_shapes_and_gradient_in_every_parameter(size):
    net = network(spatial_dims=len(size), img_size=size).train()
    x = torch.randn(2, 2, *size)
    for feature, channels, stride in zip(net.encode(x), net.encoder.channels, net.encoder.strides, strict=True):
        assert feature.shape == (2, channels, *(n // s for n, s in zip(size, stride, strict=True)))
    logits = net(x)
    assert logits.shape == (2, 3, *size)
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_transformer_is_monais_block():
    ours = encoder().eval().transformer[1]
    theirs = TransformerBlock(12, 16, 3).eval()
    weights = {
        "norm1": ours.norm1,
        "norm2": ours.norm2,
        "attn.out_proj": ours.self_attn.out_proj,
        "mlp.linear1": ours.linear1,
        "mlp.linear2": ours.linear2,
    }
    for name, module in weights.items():
        theirs.get_submodule(name).load_state_dict(module.state_dict())
    theirs.attn.qkv.weight.data.copy_(ours.self_attn.in_proj_weight)  # neither has a bias yet: it starts at zero
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-5, rtol=1e-5)


def test_positions_are_added():
    net, x = encoder().eval(), torch.zeros(1, 2, 16, 8)
    before = net(x)
    torch.nn.init.normal_(net.positions)
    after = net(x)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[-1], after[-1])


def test_size_of_the_paper():
    with torch.device("meta"):
        parts = [TransBTSEncoder(in_channels=4, img_size=128), TransBTSDecoder(out_channels=4)]
    count = sum(p.numel() for part in parts for p in part.parameters())
    unused = 512 * 512 + 512 + 2 * 512  # the authors' linear embedding and last normalisation
    biases = 2 * (16 + 2 * 32 + 2 * 64 + 4 * 128) + 2 * (2 * 128 + 64 + 32 + 16) - 4 * 3 * 512
    assert count == 32_727_876
    assert round((count + unused + biases) / 1e6, 2) == 32.99


def test_state_dict_round_trip_and_determinism():
    net, x = network().eval(), torch.randn(1, 2, 16, 8)
    other = YNet(encoder=TransBTSEncoder(**ENCODER), decoder=decoder()).eval()
    assert torch.equal(net(x), net(x))
    assert not torch.equal(net(x), other(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        (encoder, {"spatial_dims": 1}, "spatial_dims is 1; expected 2 or 3"),
        (encoder, {"in_channels": 0}, "in_channels is 0; expected at least 1"),
        (encoder, {"mlp_dim": 0}, "mlp_dim is 0; expected at least 1"),
        (encoder, {"num_layers": 0}, "num_layers is 0; expected at least 1"),
        (encoder, {"channels": [8]}, "expected at least two levels"),
        (encoder, {"channels": [8, 12, 16]}, "expected multiples of 8"),
        (encoder, {"blocks": [1, 1]}, r"blocks is \[1, 1\]; expected 3 numbers"),
        (encoder, {"num_heads": 5}, "num_heads is 5; it must divide hidden_size, which is 12"),
        (encoder, {"dropout_rate": 1.0}, "dropout_rate is 1.0; expected a probability"),
        (encoder, {"stem_dropout_rate": -0.1}, "stem_dropout_rate is -0.1; expected a probability"),
        (encoder, {"img_size": 10}, "img_size is 10; expected one number or 2 of them, each divisible by 4"),
        (encoder, {"img_size": [8, 8, 8]}, "expected one number or 2 of them"),
        (decoder, {"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        (decoder, {"channels": [4]}, "expected at least two levels"),
        (decoder, {"out_channels": 0}, "out_channels is 0; expected at least 1"),
        (decoder, {"hidden_channels": 0}, "hidden_channels is 0; expected at least 1"),
    ],
)
def test_refuses_argument(part, changes, match):
    with pytest.raises(ValueError, match=match):
        part(**changes)


def test_refuses_image_and_features():
    with pytest.raises(ValueError, match=r"spatial size \(16, 10\); each axis must be divisible by \(4, 4\)"):
        encoder()(torch.zeros(1, 2, 16, 10))
    with pytest.raises(ValueError, match=r"spatial size \(16, 16\), but .*img_size \(16, 8\)"):
        encoder()(torch.zeros(1, 2, 16, 16))
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        decoder()([torch.zeros(1, 8, 8, 8)] * 2)
