"""UNETR++ and UTNet against the plain networks that the benchmark times them against."""

from __future__ import annotations

import pytest
import torch
from reference.unetr_pp import UNETRPP
from reference.utnet import UTNet
from scripts.networks import UNETRPPDecoder, UNETRPPEncoder, UTNetDecoder, UTNetEncoder, YNet

STRIDES = [1, [2, 4, 4], [4, 8, 8], [8, 16, 16], [16, 32, 32]]
SIZE = [32, 32, 32]


def unetr_pp():
    encoder = UNETRPPEncoder(in_channels=1, img_size=SIZE, strides=STRIDES)
    decoder = UNETRPPDecoder(img_size=SIZE, out_channels=3, strides=STRIDES)
    return YNet(encoder=encoder, decoder=decoder), UNETRPP(SIZE, (2, 4, 4), 3), torch.randn(1, 1, *SIZE)


def utnet():
    encoder = UTNetEncoder(in_channels=1)
    decoder = UTNetDecoder(channels=[32, 64, 128, 256, 512], out_channels=3)
    return YNet(encoder=encoder, decoder=decoder), UTNet(3), torch.randn(1, 1, 128, 128)


@pytest.mark.parametrize("make", [unetr_pp, utnet])
def test_equal_outputs_and_gradients(make):
    torch.manual_seed(0)
    ours, plain, image = make()
    for name, p in ours.named_parameters():
        if name.endswith(("gamma", "pos_embed", "table")):
            torch.nn.init.normal_(p)  # so that attention counts
    plain.load_state_dict(ours.state_dict())  # the same names, all of them
    ours, plain = ours.eval(), plain.eval()
    result, expected = ours(image), plain(image)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-5)
    result.square().mean().backward()
    expected.square().mean().backward()
    total = torch.stack([p.grad.norm() for p in plain.parameters()]).norm()
    # where rounding puts the input of a leaky ReLU on the other side of 0, gradients change by about a thousandth
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert (q.grad - p.grad).norm() <= 3e-3 * p.grad.norm() + 1e-6 * total, name
