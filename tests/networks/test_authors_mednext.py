"""MedNeXt against the numbers of its authors' code, and against their arithmetic where no numbers are stored."""

from __future__ import annotations

import pytest
import torch
from golden_support import loaded, make_input, names, needs_golden, official_weights, read, worst_error
from monai.bundle import ConfigParser
from scripts.networks import authors, upkern
from scripts.networks.authors.mednext import CREATE, MEDNEXT, our_key
from support import CONFIGS
from torch.nn import functional as F

SMALL = {"in_channels": 1, "n_channels": 2, "n_classes": 2, "exp_r": 2, "kernel_size": 3}


def all_scales(network, x):
    return network.decoder(network.encode(x))


@needs_golden
@pytest.mark.parametrize("name", [name for name in names("mednext_*_c4*") if "upkern" not in name])
def test_gives_the_authors_numbers(name):
    meta = read(name)
    network = loaded(meta)
    with torch.no_grad():
        assert worst_error(name, all_scales(network, make_input(meta["input_shape"]))) < 1e-5


@needs_golden
@pytest.mark.parametrize("name", [name for name in names("mednext_*_c4*") if "upkern" not in name])
def test_gives_the_authors_gradients(name):
    meta = read(name)
    if "grad_check" not in meta:
        pytest.skip("no gradients in this fixture")
    network = loaded(meta)
    loss = sum(y.square().mean() for y in all_scales(network, make_input(meta["input_shape"])))
    assert loss.item() == pytest.approx(meta["grad_check"]["value"], rel=1e-5)
    loss.backward()
    parameters = dict(network.named_parameters())
    expected = {our_key(key): norm for key, norm in meta["grad_check"]["grad_l2"].items() if key != "dummy_tensor"}
    assert expected.keys() == parameters.keys()
    rounding = 1e-5 * max(expected.values())  # a bias before instance normalisation has no gradient but rounding
    for key, norm in expected.items():
        assert parameters[key].grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=rounding), key


@needs_golden
def test_upkern_gives_the_authors_weights():
    meta = read("mednext_S_upkern_k3_to_k5_c4")
    small = loaded({**meta, "config": meta["source_config"], "state_dict": meta["source_state_dict"]})
    large = authors.build(meta["official_class"], **meta["config"]).eval()
    weights = upkern(small.state_dict(), large)
    large.load_state_dict(weights)
    for key, total, norm in meta["upkern_weights"]:
        assert weights[our_key(key)].sum().item() == pytest.approx(total, abs=1e-4), key
        assert weights[our_key(key)].norm().item() == pytest.approx(norm, rel=1e-6), key
    with torch.no_grad():
        assert worst_error(meta["name"], all_scales(large, make_input(meta["input_shape"]))) < 1e-5


def random_weights(network):
    """Random weights of a network of ours under the authors' keys."""
    parts = {"encoder.stem": "stem", "decoder.stages.4": "bottleneck"}
    parts |= {f"encoder.stages.{i}": f"enc_block_{i}" for i in range(4)}
    parts |= {f"encoder.downs.{i}": f"down_{i}" for i in range(4)}
    parts |= {f"decoder.stages.{i}": f"dec_block_{i}" for i in range(4)}
    parts |= {f"decoder.ups.{i}": f"up_{i}" for i in range(4)}
    parts |= {f"decoder.heads.{i}": f"out_{i}.conv_out" for i in range(5)}
    generator = torch.Generator().manual_seed(0)
    weights = {"dummy_tensor": torch.ones(1)}
    for key, value in network.state_dict().items():
        part = next(part for part in parts if key.startswith(part + "."))
        name = parts[part] + key.removeprefix(part).replace("global_resp", "grn")
        value = value.transpose(0, 1) if part.startswith("decoder.heads") and value.ndim > 1 else value
        weights[name] = torch.randn(value.shape, generator=generator) * (0.3 if value.ndim > 1 else 1)
    return weights


def plain_mednext(weights, x, *, residual, norm="group", deep_supervision=False):
    """The authors' network, computed straight from their weights."""
    axes = x.ndim - 2
    conv, transposed = (F.conv2d, F.conv_transpose2d) if axes == 2 else (F.conv3d, F.conv_transpose3d)

    def of(layer):
        return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    def per_channel(tensor):
        return tensor.view(-1, *[1] * axes)

    def bottleneck(name, x, apply, stride):
        kernel, bias = of(f"{name}.conv1")
        x = apply(x, kernel, bias, stride, kernel.shape[-1] // 2, groups=len(kernel))
        if norm == "group":
            x = F.group_norm(x, x.shape[1], *of(f"{name}.norm"))
        else:
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            x = x * per_channel(weights[f"{name}.norm.weight"]) + per_channel(weights[f"{name}.norm.bias"])
        x = F.gelu(conv(x, *of(f"{name}.conv2")))
        if f"{name}.grn_gamma" in weights:
            energy = x.square().sum(tuple(range(2, x.ndim)), keepdim=True).sqrt()
            response = energy / (energy.mean(1, keepdim=True) + 1e-6)
            x = x + weights[f"{name}.grn_gamma"] * x * response + weights[f"{name}.grn_beta"]
        return conv(x, *of(f"{name}.conv3"))

    def blocks(name, x):
        for i in range(100):
            if f"{name}.{i}.conv1.weight" not in weights:
                return x
            x = bottleneck(f"{name}.{i}", x, conv, 1) + (x if residual else 0)

    def down(name, x):
        y = bottleneck(name, x, conv, 2)
        return y + conv(x, *of(f"{name}.res_conv"), 2) if f"{name}.res_conv.weight" in weights else y

    def up(name, x):
        y = bottleneck(name, x, transposed, 2)
        if f"{name}.res_conv.weight" in weights:
            y = y + transposed(x, *of(f"{name}.res_conv"), 2)
        return F.pad(y, (1, 0) * axes)

    x, skips = conv(x, *of("stem")), []
    for i in range(4):
        skips.append(blocks(f"enc_block_{i}", x))
        x = down(f"down_{i}", skips[i])
    x = blocks("bottleneck", x)
    logits = [transposed(x, *of("out_4.conv_out"))] if deep_supervision else []
    for i in reversed(range(4)):
        x = blocks(f"dec_block_{i}", up(f"up_{i}", x) + skips[i])
        if deep_supervision or i == 0:
            logits.insert(0, transposed(x, *of(f"out_{i}.conv_out")))
    return logits


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_res": True},
        {"do_res_up_down": True},
        {"kernel_size": None, "enc_kernel_size": 3, "dec_kernel_size": 5},
        {"kernel_size": 3, "enc_kernel_size": 5, "dec_kernel_size": 7},
        {"norm_type": "layer", "grn": True},
        {"dim": "2d", "grn": True, "do_res": True, "do_res_up_down": True},
        {"exp_r": [1, 2, 3, 1, 2, 3, 1, 2, 3], "block_counts": [1, 0, 2, 1, 3, 0, 1, 2, 1]},
        {"checkpoint_style": "outside_block", "n_channels": 3, "in_channels": 2},
        {"size": (16, 16, 16), "do_res": True, "do_res_up_down": True},  # a single position at the bottom
        {"size": (16, 16), "dim": "2d", "grn": True, "kernel_size": 5},
        {"kernel_size": None, "enc_kernel_size": 1, "dec_kernel_size": 1, "do_res": True, "do_res_up_down": True},
    ],
    ids=str,
)
def test_any_option_of_the_authors_class(changes, deep_supervision):
    arguments = SMALL | {"block_counts": [1] * 9, "deep_supervision": deep_supervision} | changes
    size = arguments.pop("size", (48, 32) if arguments.get("dim") == "2d" else (32, 16, 16))
    network = authors.build(MEDNEXT, **arguments)
    weights = random_weights(network)
    ignored = authors.load(network, weights, MEDNEXT)
    assert list(ignored) == ["dummy_tensor"]
    x = torch.randn(2, arguments["in_channels"], *size, generator=torch.Generator().manual_seed(1))
    expected = plain_mednext(
        {key: value.double() for key, value in weights.items()},  # on a few positions, norms amplify rounding
        x.double(),
        residual=arguments.get("do_res", False),
        norm=arguments.get("norm_type", "group"),
        deep_supervision=deep_supervision,
    )
    with torch.no_grad():
        single = all_scales(network.eval(), x)
        double = all_scales(network.double(), x.double())
    for fast, got, wanted in zip(single, double, expected, strict=True):
        assert (got - wanted).abs().max() < 1e-10 * wanted.abs().max()
        assert (fast - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_a_single_position_of_a_single_image_is_refused_as_torch_does():
    network = authors.build(MEDNEXT, **SMALL).eval()
    with pytest.raises(ValueError, match="single position"):
        network(torch.zeros(1, 1, 16, 16, 16))
    assert network.train()(torch.zeros(2, 1, 16, 16, 16)).isfinite().all()
    layer = authors.build(MEDNEXT, **SMALL, norm_type="layer").eval()
    assert layer(torch.zeros(1, 1, 16, 16, 16)).isfinite().all()


def test_names_of_the_authors_package():
    with torch.device("meta"):
        large = {
            authors.build(name, num_input_channels=1, num_classes=2, **arguments).state_dict().keys()
            and str(authors.build(name, num_input_channels=1, num_classes=2, **arguments))
            for name, arguments in (
                (CREATE, {"model_id": "L", "kernel_size": 5, "deep_supervision": True}),
                ("nnunet_mednext.create_mednext_v1", {"model_id": "L", "kernel_size": 5, "deep_supervision": True}),
                (CREATE.replace("t_v1.create_mednext_v1", "t_v1.create_mednextv1_large"), {"kernel_size": 5, "ds": 1}),
            )
        }
        assert len(large) == 1
        same = (str(authors.build(name, **SMALL)) for name in (MEDNEXT, "nnunet_mednext.MedNeXt"))
        assert next(same) == next(same)


def test_kernels_are_the_authors():
    def side(part):
        return part.stages[0][0].conv1.kernel_size[0], part.stages[-1][0].conv1.kernel_size[0]

    arguments = {key: value for key, value in SMALL.items() if key != "kernel_size"}
    network = authors.build(MEDNEXT, **arguments)
    assert side(network.encoder) == side(network.decoder) == (7, 7)
    network = authors.build(MEDNEXT, **arguments, kernel_size=None, enc_kernel_size=3, dec_kernel_size=5)
    assert side(network.encoder) == (3, 3)
    assert side(network.decoder) == (5, 5)  # the bottleneck too
    network = authors.build(CREATE, num_input_channels=1, num_classes=2, model_id="S")
    assert side(network.encoder) == side(network.decoder) == (3, 3)


def test_large_models_recompute():
    for model, recomputes in {"S": False, "B": False, "M": True, "L": True}.items():
        with torch.device("meta"):
            network = authors.build(CREATE, num_input_channels=1, num_classes=2, model_id=model)
        assert network.encoder.use_checkpoint == network.decoder.use_checkpoint == recomputes


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("model", ["S", "B", "M", "L"])
def test_overlay_is_the_authors_model(model, kernel_size):
    config = ConfigParser.load_config_file(str(CONFIGS / f"network_mednext_{model.lower()}.yaml"))
    base = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "fusion_def": None}
    parser = ConfigParser(config | base | {"kernel_size": kernel_size, "deep_supervision": True})
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
        theirs = authors.build(
            CREATE,
            num_input_channels=1,
            num_classes=2,
            model_id=model,
            kernel_size=kernel_size,
            deep_supervision=True,
        )
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in network.state_dict().items()} == shapes
    assert network.encoder.use_checkpoint == network.decoder.use_checkpoint == theirs.encoder.use_checkpoint
    assert network.encoder.channels[-1] == config["bottleneck_channels"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dim": "1d"}, "dim is '1d'; expected one of"),
        ({"norm_type": "batch"}, "norm_type is 'batch'"),
        ({"norm_type": "layer", "dim": "2d"}, "norm_type is 'layer'; only 'group'"),
        ({"checkpoint_style": "inside_block"}, "checkpoint_style is 'inside_block'"),
        ({"exp_r": [2, 2]}, r"exp_r is \[2, 2\]; expected 9 numbers"),
        ({"block_counts": 2}, "block_counts is 2; expected 9 numbers"),
        ({"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        ({"kernel_size": None, "dec_kernel_size": 3}, "enc_kernel_size is None"),
        ({"kernel_size": None, "enc_kernel_size": 3, "dec_kernel_size": (3, 3, 1)}, "dec_kernel_size is"),
        ({"width": 3}, "no argument width"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        authors.build(MEDNEXT, **SMALL | changes)


def test_refuses_model_and_missing_argument():
    with pytest.raises(ValueError, match="model_id is 'XL'; expected one of"):
        authors.build(CREATE, num_input_channels=1, num_classes=2, model_id="XL")
    with pytest.raises(TypeError, match="needs the argument n_classes"):
        authors.build(MEDNEXT, in_channels=1, n_channels=2)


def test_refuses_other_weights():
    network = authors.build(MEDNEXT, **SMALL)
    weights = random_weights(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for state, match in (
        ({key: value for key, value in weights.items() if key != "up_2.conv1.bias"}, "missing.*ups.2.conv1.bias"),
        (weights | {"out_1.conv_out.bias": torch.zeros(2)}, "unknown to the network: decoder.heads.1.bias"),
        (weights | {"extra": torch.zeros(2)}, "unknown to the network: extra"),
        (weights | {"stem.weight": torch.zeros(2)}, r"encoder.stem.weight: file \[2\]"),
        ({"foreign": torch.zeros(1)}, "missing"),
    ):
        with pytest.raises(ValueError, match=match):
            authors.load(network, state, MEDNEXT)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@needs_golden
def test_weights_of_a_file(tmp_path):
    meta = read("mednext_S_k3_c4")
    torch.save({"state_dict": official_weights(meta), "epoch": 3}, tmp_path / "mednext.model")
    state = torch.load(tmp_path / "mednext.model", weights_only=True)["state_dict"]
    network = authors.build(meta["official_class"], **meta["config"])
    assert list(authors.load(network, state, meta["official_class"])) == ["dummy_tensor"]
