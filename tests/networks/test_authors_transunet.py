"""TransUNet against the numbers of the authors' code, and what is refused."""

from __future__ import annotations

import pytest
import torch
from golden_support import loaded, make_input, names, needs_golden, read, worst_error
from scripts.networks import authors
from scripts.networks.authors.transunet import OFFICIAL

(CLASS,) = OFFICIAL
ALL = names("transunet_*")
TINY = {
    "config": "R50-ViT-B_16",
    "img_size": 32,
    "grid": [2, 2],
    "hidden_size": 12,
    "mlp_dim": 16,
    "num_heads": 3,
    "num_layers": 1,
    "resnet_num_layers": [1, 1, 1],
}
PLAIN = {
    "config": "ViT-B_16",
    "n_skip": 0,
    **{key: TINY[key] for key in list(TINY)[1:] if key[:4] not in ("grid", "resn")},
}


@needs_golden
@pytest.mark.parametrize("name", [name for name in ALL if not name.endswith("_paper")])
def test_gives_the_authors_numbers(name):
    meta = read(name)
    network, x = loaded(meta), make_input(meta["input_shape"])
    with torch.no_grad():
        logits = network.decoder(network.encode(x))
        assert torch.equal(network(x.repeat(1, 3, 1, 1)), logits[0])
    assert worst_error(name, logits) < 1e-4


@needs_golden
@pytest.mark.parametrize("name", [name for name in ALL if name.endswith("_paper")])
def test_takes_every_key_of_the_paper(name):
    meta = read(name)
    with torch.device("meta"):
        network = authors.build(meta["official_class"], **meta["config"])
        weights = {key: torch.empty(shape) for key, shape, _ in meta["state_dict"]}
    assert authors.load(network, weights, meta["official_class"]) == {}


@pytest.mark.parametrize("n_skip", [0, 1, 2, 3])
def test_joins_as_many_skips_as_the_authors(n_skip):
    network = authors.build(CLASS, **TINY, n_skip=n_skip)
    skips = [512, 256, 64][:n_skip] + [0] * (4 - n_skip)
    before = [512, 256, 128, 64]  # of each of the authors' blocks, the coarsest first
    expected = [width + skip for width, skip in zip(before, skips, strict=True)]
    assert [up.conv1[0].in_channels for up in reversed(network.decoder.ups)] == expected
    assert network.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_options():
    network = authors.build(
        CLASS,
        **TINY | {"grid": 2, "img_size": [48, 48]},  # 48 // 16 // 2 is 1, which is all that the authors take from it
        n_classes=3,
        decoder_channels=[16, 8, 8, 4],
        resnet_width_factor=0.5,
        skip_channels=[256, 128, 32, 8],
        num_classes=7,
        vis=True,
    )
    assert network.encoder.channels == (32, 128, 256, 12)
    assert network.eval()(torch.zeros(1, 3, 48, 48)).shape == (1, 3, 48, 48)


def test_plain_transformer():
    network = authors.build(CLASS, **PLAIN).eval()
    official = {
        "transformer.embeddings.position_embeddings": (1, 4, 12),
        "transformer.embeddings.patch_embeddings.weight": (12, 3, 16, 16),
        "transformer.embeddings.patch_embeddings.bias": (12,),
        "decoder.conv_more.0.weight": (512, 12, 3, 3),
        "decoder.blocks.0.conv1.0.weight": (256, 512, 3, 3),
        "decoder.blocks.3.conv2.0.weight": (16, 16, 3, 3),
        "segmentation_head.0.weight": (2, 16, 3, 3),
    }
    target = network.state_dict()
    ours, _ = authors.transunet.translate(network, {key: torch.empty(shape) for key, shape in official.items()}, CLASS)
    assert {key: value.shape for key, value in ours.items()} == {key: target[key].shape for key in ours}
    assert not any("backbone" in key for key in target)
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"config": "ViT-H_14"}, "config is 'ViT-H_14'; only"),
        ({"img_size": 40}, "img_size is 40; only squares of a multiple of 16"),
        ({"img_size": [32, 48]}, "only squares of a multiple of 16"),
        ({"grid": [4, 4]}, r"grid is \[4, 4\]; only \(2, 2\)"),
        ({"grid": [1, 1]}, r"only \(2, 2\)"),
        ({"n_skip": 4}, "n_skip is 4; only 0 to 3"),
        ({"decoder_channels": [64, 16]}, "decoder_channels is .*; only 4 numbers"),
        ({"resnet_width_factor": 0.7}, "resnet_width_factor is 0.7; only multiples of 0.5"),
        ({"resnet_width_factor": 2}, r"skip_channels is .*; only \[1024, 512, 128\]"),
        ({"resnet_num_layers": [1, 1]}, "resnet_num_layers is .*; only 3 numbers"),
        ({"num_heads": 5}, "num_heads is 5; it must divide hidden_size"),
        ({"heads": 5}, "has no argument heads"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        authors.build(CLASS, **TINY | changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": [32, 32]}, r"size is \[32, 32\]; only 16"),
        ({"n_skip": 1, "skip_channels": [512, 0, 0, 0]}, "only zeros are supported"),
        ({"grid": [2, 2]}, "has no argument grid"),
    ],
)
def test_refuses_argument_of_a_plain_transformer(changes, match):
    with pytest.raises(ValueError, match=match):
        authors.build(CLASS, **PLAIN | changes)


def test_asks_for_what_has_no_default():
    with pytest.raises(TypeError, match="needs the argument config"):
        authors.build(CLASS)
    with pytest.raises(TypeError, match="needs the argument n_skip"):
        authors.build(CLASS, config="R50-ViT-L_16")


def test_refuses_weights_of_another_network():
    network = authors.build(CLASS, **PLAIN)
    with pytest.raises(ValueError, match="not the weights"):
        authors.load(network, {"transformer.embeddings.cls_token": torch.zeros(1)}, CLASS)
