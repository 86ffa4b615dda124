"""ResNet50-UNet and ResNet-UTNet against the numbers of their authors' code."""

from __future__ import annotations

import golden_support as golden
import pytest
import torch
from golden_support import needs_golden
from scripts.networks import authors
from scripts.networks.authors.keys import INDEX
from scripts.networks.authors.resnet_utnet import OFFICIAL
from scripts.networks.utnet_attention import position_index

TOLERANCE = 1e-4
NAMES = golden.names("resnet*")
(CLASS,) = OFFICIAL


@needs_golden
@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_paper")])
def test_outputs_and_size(name):
    meta = golden.read(name)
    network = golden.loaded(meta)
    with torch.no_grad():
        logits = network.decoder(network.encode(golden.make_input(meta["input_shape"])))
    assert golden.worst_error(name, logits) < TOLERANCE


def build(**changes):
    with torch.device("meta"):
        return authors.build(CLASS, **{"in_ch": 1, "num_class": 3, "block_units": [1, 1, 1], **changes})


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({"num_blocks": [2, 3, 4]}, [0, 0, 3, 4]),
        ({"block_list": "04", "num_blocks": [2, 1, 1, 1], "num_heads": [4] * 4}, [2, 0, 0, 0]),
        ({"block_list": "", "num_blocks": [], "num_heads": []}, [0] * 4),
    ],
)
def test_block_list_says_where_attention_stands(changes, blocks):
    assert [len(level) for level in build(**changes).encoder.attention] == blocks


def test_heads_are_as_wide_as_the_authors_number_of_heads():
    attention = build(num_heads=[4, 8, 3]).encoder.attention
    assert [level[0].attn.heads for level in attention[2:]] == [512 // 8, 1024 // 3]


@pytest.mark.parametrize("in_ch", [1, 2, 3])
def test_grey_and_colour_images_whatever_in_ch_says(in_ch):
    network = authors.build(CLASS, in_ch=in_ch, num_class=3, block_list="", block_units=[1, 1, 1]).eval()
    grey = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match=r"expected \(B, 3, \*spatial\)"):
        network(torch.randn(1, 2, 32, 32))


def test_a_single_position_at_the_bottom():
    network = authors.build(CLASS, in_ch=1, num_class=3, block_list="", block_units=[1, 1, 1]).eval()
    assert network(torch.randn(2, 1, 16, 16)).isfinite().all()
    with pytest.raises(ValueError, match="single position"):
        network(torch.randn(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width_factor": 2}, "width_factor is 2; only 1 is supported"),
        ({"block_list": "25"}, "block_list is '25'; expected digits of '01234'"),
        ({"num_heads": [4]}, r"num_heads is \[4\]; block_list '234' needs a list of at least 2 numbers"),
        ({"num_heads": [4, 4, 2000]}, "num_heads is .* at least 1"),
        ({"num_blocks": [1, 0, 1]}, r"num_blocks is \[1, 0, 1\].*each at least 1"),
        ({"block_units": (1, 2)}, "block_units is .*expected three numbers"),
        ({"aux_loss": True}, "has no argument aux_loss"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


@needs_golden
def test_load_uses_or_names_every_key():
    meta = golden.read("resnet_utnet_units111_123")
    weights = golden.official_weights(meta)
    weights |= {key: position_index(4) for key, _, _ in meta["state_dict"] if key.endswith(INDEX)}
    network = authors.build(CLASS, **meta["config"])
    ignored = authors.load(network, weights, CLASS)
    assert sorted(ignored) == [f"trans_{i}.blocks.0.attn{INDEX}" for i in (1, 2, 3)]
    with pytest.raises(ValueError, match=r"unknown to the network: .*up9.weight"):
        authors.load(network, weights | {"up9.weight": torch.zeros(1)}, CLASS)
    del weights["output.bias"]
    with pytest.raises(ValueError, match=r"missing in the file: decoder.head.bias"):
        authors.load(network, weights, CLASS)
