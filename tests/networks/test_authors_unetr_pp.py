"""UNETR++ against the numbers of its authors' code, and against their arithmetic where no numbers are stored."""

from __future__ import annotations

import pytest
import torch
from golden_support import loaded, macs, make_input, names, needs_golden, official_weights, read, worst_error
from scripts.networks import authors
from scripts.networks.authors.unetr_pp import OFFICIAL, SETTINGS
from torch.nn import functional as F

SYNAPSE, ACDC, LUNG, TUMOUR = OFFICIAL
SMALL = {"out_channels": 3, "feature_size": 2, "hidden_size": 32, "num_heads": 2, "depths": [1, 1, 1, 1]}


def arguments(official_class, **changes):
    """Constructor arguments of a small network of a class, for the smallest image of two positions at the bottom."""
    settings = SETTINGS[official_class]
    size = [8 * s for s in settings.stem]
    return SMALL | {"in_channels": settings.in_channels, "img_size": [2 * size[0], *size[1:]]} | changes


def all_scales(network, x):
    """Logits in the order in which the authors return them: full resolution, first stage, second stage."""
    return network.decoder(network.encode(x))


@needs_golden
@pytest.mark.parametrize("name", [name for name in names("unetrpp_*") if "paper" not in name])
def test_gives_the_authors_numbers(name):
    meta = read(name)
    network = loaded(meta)
    with torch.no_grad():
        assert worst_error(name, all_scales(network, make_input(meta["input_shape"]))) < 1e-5
    assert sum(p.numel() for p in network.parameters()) == meta["n_params"]


@needs_golden
@pytest.mark.parametrize("name", names("unetrpp_*_small*"))
def test_gives_the_authors_gradients(name):
    meta = read(name)
    network = loaded(meta).double()  # in float32 an activation within rounding of zero may change side: 1 % of a norm
    loss = sum(y.square().mean() for y in all_scales(network, make_input(meta["input_shape"]).double()))
    assert loss.item() == pytest.approx(meta["grad_check"]["value"], rel=1e-5)
    loss.backward()
    norms = {key: torch.tensor(norm, dtype=torch.float64) for key, norm in meta["grad_check"]["grad_l2"].items()}
    expected, _ = authors.unetr_pp.translate(network, norms, meta["official_class"])
    parameters = dict(network.named_parameters())
    assert expected.keys() == parameters.keys()
    rounding = 1e-5 * max(expected.values()).item()
    for key, norm in expected.items():
        assert parameters[key].grad.norm().item() == pytest.approx(norm.item(), rel=1e-3, abs=rounding), key


@needs_golden
def test_counts_the_same_with_fused_attention():
    meta = read("unetrpp_acdc_f4_small")
    network = authors.build(meta["official_class"], **meta["config"])
    assert macs(network, meta["input_shape"]) == meta["macs"]["torch_flop_counter_half"]


def random_weights(network, official_class):
    """Random weights of a network of ours under the authors' keys, tied ones twice."""
    parts = {"encoder.image_block": "encoder1", "encoder.stages": "unetr_pp_encoder.stages"}
    parts |= {f"encoder.downsamples.{i}.0": f"unetr_pp_encoder.downsample_layers.{i}.0.conv" for i in range(4)}
    parts |= {f"encoder.downsamples.{i}.1": f"unetr_pp_encoder.downsample_layers.{i}.1" for i in range(4)}
    parts |= {f"decoder.ups.{i}": f"decoder{i + 2}.transp_conv.conv" for i in range(4)}
    parts |= {f"decoder.stages.{i}": f"decoder{i + 2}.decoder_block.0" for i in range(4)}
    parts |= {f"decoder.heads.{i}": f"out{i + 1}.conv.conv" for i in range(3)}
    inner = {"convolutions.0": "conv51", "convolutions.1": "conv52", ".out.": ".conv8.", "attention": "epa_block"}
    inner |= {"channel_temperature": "temperature", "spatial_temperature": "temperature2"}
    inner |= {"merge.spatial": "out_proj", "merge.channel": "out_proj2", "projection.matrix": "EF"}
    inner |= {"projection.keys": "E", "projection.values": "F"}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in network.state_dict().items():
        part = next(part for part in parts if key.startswith(part + "."))
        name = key.removeprefix(part)
        for ours, theirs in inner.items():
            name = name.replace(ours, theirs)
        noise = torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        scale = 1 / noise[0].numel() ** 0.5 if noise.ndim > 1 and "temperature" not in name else 1
        noise = noise.abs() + 0.5 if "running_var" in name else noise * scale if noise.ndim else noise
        for tied in ("E", "F"):  # the same name where there is nothing tied
            weights[parts[part] + name.replace("projection.both", tied)] = noise
    return weights


def plain_unetr_pp(weights, x, *, stem, norm, heads):
    """The authors' network in eval mode, computed straight from their weights: nothing fused, nothing reordered."""

    def of(layer):
        return weights[f"{layer}.weight"], weights.get(f"{layer}.bias")

    def normalise(name, x, norm):
        if norm == "instance":
            return F.instance_norm(x)
        if norm[0] == "group":
            return F.group_norm(x, norm[1]["num_groups"], *of(name))
        return F.batch_norm(x, weights[f"{name}.running_mean"], weights[f"{name}.running_var"], *of(name))

    def residual(name, x, norm):
        y = F.leaky_relu(normalise(f"{name}.norm1", F.conv3d(x, *of(f"{name}.conv1.conv"), padding=1), norm), 0.01)
        y = normalise(f"{name}.norm2", F.conv3d(y, *of(f"{name}.conv2.conv"), padding=1), norm)
        if f"{name}.conv3.conv.weight" in weights:
            x = normalise(f"{name}.norm3", F.conv3d(x, *of(f"{name}.conv3.conv")), norm)
        return F.leaky_relu(y + x, 0.01)

    def attention(name, x, heads):
        batch, tokens, width = x.shape
        qkvv = F.linear(x, *of(f"{name}.qkvv")).reshape(batch, tokens, 4, heads, width // heads)
        q, k, v_channel, v_spatial = qkvv.permute(2, 0, 3, 4, 1)  # (B, heads, d, N) each
        if f"{name}.EF" in weights:
            key, value = k @ weights[f"{name}.EF"], v_spatial @ weights[f"{name}.EF"]
        else:
            key, value = F.linear(k, *of(f"{name}.E")), F.linear(v_spatial, *of(f"{name}.F"))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        channel = (q @ k.transpose(2, 3) * weights[f"{name}.temperature"]).softmax(-1) @ v_channel
        channel = channel.permute(0, 3, 1, 2).reshape(x.shape)
        spatial = (q.transpose(2, 3) @ key * weights[f"{name}.temperature2"]).softmax(-1) @ value.transpose(2, 3)
        spatial = spatial.permute(0, 3, 1, 2).reshape(x.shape)  # from (B, heads, N, d): mixes tokens and channels
        if f"{name}.out_proj.weight" not in weights:
            return spatial + channel
        return torch.cat((F.linear(spatial, *of(f"{name}.out_proj")), F.linear(channel, *of(f"{name}.out_proj2"))), -1)

    def blocks(name, x, heads):
        for i in range(100):
            block = f"{name}.{i}"
            if f"{block}.gamma" not in weights:
                return x
            tokens = x.flatten(2).transpose(1, 2) + weights[f"{block}.pos_embed"]
            y = F.layer_norm(tokens, tokens.shape[-1:], *of(f"{block}.norm"))
            tokens = tokens + weights[f"{block}.gamma"] * attention(f"{block}.epa_block", y, heads)
            x = y = tokens.transpose(1, 2).reshape(x.shape)
            for convolution in ("conv51", "conv52"):
                if f"{block}.{convolution}.conv1.conv.weight" in weights:
                    y = residual(f"{block}.{convolution}", y, "batch")
            x = x + F.conv3d(y, *of(f"{block}.conv8.1"))
        raise AssertionError

    skips = [residual("encoder1", x, norm)]
    for i in range(4):
        stride = stem if i == 0 else 2
        groups = x.shape[1]
        x = F.conv3d(x, *of(f"unetr_pp_encoder.downsample_layers.{i}.0.conv"), stride=stride)
        x = F.group_norm(x, groups, *of(f"unetr_pp_encoder.downsample_layers.{i}.1"))
        x = blocks(f"unetr_pp_encoder.stages.{i}", x, heads)
        skips.append(x)
    logits = []
    for i in reversed(range(4)):
        stride = stem if i == 0 else 2
        x = F.conv_transpose3d(x, *of(f"decoder{i + 2}.transp_conv.conv"), stride=stride) + skips[i]
        name = f"decoder{i + 2}.decoder_block.0"
        x = blocks(name, x, 4) if i else residual(name, x, norm)
        if f"out{i + 1}.conv.conv.weight" in weights:
            logits.insert(0, F.conv3d(x, *of(f"out{i + 1}.conv.conv")))
    return logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_name": "batch", "do_ds": False},
        {"feature_size": 6, "hidden_size": 96, "num_heads": 3, "depths": [2, 1, 3, 1], "out_channels": 5},
        {"depths": (0, 2, 0, 1), "conv_op": torch.nn.Conv2d, "norm_name": ["group", {"num_groups": 2}]},
    ],
    ids=["small", "batch", "wide", "no blocks"],
)
@pytest.mark.parametrize("official_class", OFFICIAL, ids=["synapse", "acdc", "lung", "tumour"])
def test_any_option_of_the_authors_class(official_class, changes):
    given = arguments(official_class, **changes)
    network = authors.build(official_class, **given).eval()
    weights = random_weights(network, official_class)
    assert authors.load(network, weights, official_class) == {}
    x = torch.randn(2, given["in_channels"], *given["img_size"], generator=torch.Generator().manual_seed(1))
    stem, norm = SETTINGS[official_class].stem, given.get("norm_name", "instance")
    expected = plain_unetr_pp(weights, x, stem=stem, norm=norm, heads=given["num_heads"])
    assert len(expected) == (1 if given.get("do_ds") is False else 3)
    with torch.no_grad():
        for got, wanted in zip(all_scales(network, x), expected, strict=True):
            assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("official_class", OFFICIAL, ids=["synapse", "acdc", "lung", "tumour"])
def test_a_single_position_at_the_bottom(official_class, batch):
    settings = SETTINGS[official_class]
    given = arguments(official_class, img_size=[8 * s for s in settings.stem])
    network = authors.build(official_class, **given).eval()
    weights = random_weights(network, official_class)
    authors.load(network, weights, official_class)
    x = torch.randn(batch, given["in_channels"], *given["img_size"], generator=torch.Generator().manual_seed(1))
    expected = plain_unetr_pp(weights, x, stem=settings.stem, norm="instance", heads=given["num_heads"])
    with torch.no_grad():
        for got, wanted in zip(all_scales(network, x), expected, strict=True):
            assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    network.train()
    if batch == 1:  # batch normalisation of a single value
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network(x)
    else:
        assert network(x)[0].isfinite().all()


def test_defaults_are_the_authors():
    with torch.device("meta"):
        network = authors.build(ACDC, in_channels=1, out_channels=4)
        same = authors.build(ACDC, in_channels=1, out_channels=4, pos_embed="conv", dropout_rate=0.3, dims=None)
    assert network.encoder.img_size == network.decoder.img_size == (16, 160, 160)
    assert network.encoder.channels == (16, 32, 64, 128, 256)
    assert [len(stage) for stage in network.encoder.stages] == [3] * 4
    assert [len(stage) for stage in network.decoder.stages[1:]] == [3] * 3
    assert len(network.decoder.heads) == 3
    assert str(same) == str(network)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"in_channels": 2}, "in_channels is 2; only 1 is supported"),
        ({"dims": [4, 8, 16, 64]}, r"dims is \[4, 8, 16, 64\]; only \[4, 8, 16, 32\]"),
        ({"hidden_size": 256}, "hidden_size is 256; only 32"),
        ({"feature_size": 3, "hidden_size": 48}, "feature_size is 3; only even numbers"),
        ({"depths": [3, 3, 3]}, r"depths is \[3, 3, 3\]; expected 4"),
        ({"num_heads": 5}, "divisible by num_heads 5"),
        ({"pos_embed": "sine"}, "pos_embed is 'sine'; expected"),
        ({"dropout_rate": 1.5}, "dropout_rate is 1.5"),
        ({"norm_name": "none"}, "UNETR_PP: norm_name is 'none'; expected 'instance'"),
        ({"img_size": [32, 64, 100]}, "img_size is"),
        ({"patch": 3}, "has no argument patch"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        authors.build(SYNAPSE, **arguments(SYNAPSE, **changes))


def test_refuses_missing_arguments():
    with pytest.raises(TypeError, match="needs the argument img_size"):
        authors.build(SYNAPSE, in_channels=1, out_channels=4)
    with pytest.raises(TypeError, match="needs the argument out_channels"):
        authors.build(LUNG, in_channels=1)


def test_refuses_other_weights():
    network = authors.build(SYNAPSE, **arguments(SYNAPSE))
    weights = random_weights(network, SYNAPSE)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tied = "unetr_pp_encoder.stages.1.0.epa_block.F.bias"
    missing = "decoder3.decoder_block.0.0.gamma"
    acdc = authors.build(ACDC, **arguments(ACDC, img_size=[32, 32, 32]))
    for state, match in (
        ({key: value for key, value in weights.items() if key != missing}, "missing in the file: decoder.stages.1.0"),
        (weights | {"out4.conv.conv.bias": torch.zeros(3)}, "unknown to the network: out4.conv.conv.bias"),
        (weights | {"encoder1.extra": torch.zeros(3)}, "unknown to the network: encoder1.extra"),
        (weights | {"out1.conv.conv.bias": torch.zeros(4)}, r"decoder.heads.0.bias: file \[4\], network \[3\]"),
        (weights | {tied: weights[tied] + 1}, r"stages.1.0.epa_block.E.bias and .*F.bias differ, but they are one"),
        ({"foreign": torch.zeros(1)}, "missing"),
        (random_weights(acdc, ACDC), "differ, but they are one tensor"),
    ):
        with pytest.raises(ValueError, match=match):
            authors.load(network, state, SYNAPSE)
    with pytest.raises(ValueError, match=r"unknown to the network: .*epa_block\.E\.weight"):
        authors.load(authors.build(TUMOUR, **arguments(TUMOUR)), weights, TUMOUR)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_tied_keys_may_be_listed_once():
    network = authors.build(SYNAPSE, **arguments(SYNAPSE))
    weights = random_weights(network, SYNAPSE)
    once = {key: value for key, value in weights.items() if ".epa_block.F." not in key}
    assert len(once) < len(weights)
    assert authors.load(network, once, SYNAPSE) == {}


@needs_golden
def test_weights_of_a_file(tmp_path):
    meta = read("unetrpp_acdc_f4_small")
    torch.save({"state_dict": official_weights(meta), "epoch": 3}, tmp_path / "model_final.model")
    state = torch.load(tmp_path / "model_final.model", weights_only=True)["state_dict"]
    network = authors.build(meta["official_class"], **meta["config"])
    assert authors.load(network, state, meta["official_class"]) == {}
