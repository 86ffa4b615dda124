"""MONAI's own classes against the networks that `authors` builds for them: fixtures, and random weights."""

from __future__ import annotations

import importlib

import pytest
import torch
from golden_support import loaded, make_input, names, needs_golden, official_weights, read, worst_error
from monai.networks import nets
from scripts.networks import authors
from torch import Tensor

PREFIX = "monai.networks.nets."
SWIN = f"{PREFIX}SwinUNETR(...).swinViT(x, normalize=True)"
PAPER = [n for n in names("monai_*") if n == "absent" or "_64" not in n]

SWIN_UNETR = {"in_channels": 1, "out_channels": 2, "feature_size": 12, "window_size": 2}
UNETR = {"in_channels": 1, "out_channels": 2, "img_size": [32, 16], "spatial_dims": 2}
UNETR |= {"feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2}
DYNUNET = {"in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3], "strides": [1, 2, 2]}
DYNUNET |= {"upsample_kernel_size": [2, 2], "filters": [4, 8, 16]}
MEDNEXT = {"in_channels": 2, "out_channels": 2, "init_filters": 4, "kernel_size": 3, "use_residual_connection": True}
CASES = [
    ("SwinUNETR", SWIN_UNETR, (64, 32, 32)),
    ("SwinUNETR", {**SWIN_UNETR, "use_v2": True, "in_channels": 3}, (64, 32, 32)),
    ("SwinUNETR", {**SWIN_UNETR, "spatial_dims": 2, "window_size": [3, 2], "depths": [1, 2, 1, 1]}, (64, 64)),
    ("SwinUNETR", {**SWIN_UNETR, "spatial_dims": 2, "num_heads": [2, 2, 4, 4], "feature_size": 24}, (32, 64)),
    ("SwinUNETR", {**SWIN_UNETR, "downsample": "mergingv2", "normalize": False, "patch_norm": True}, (32, 32, 64)),
    (
        "SwinUNETR",
        {
            **SWIN_UNETR,
            "spatial_dims": 2,
            "qkv_bias": False,
            "mlp_ratio": 2.0,
            "norm_name": ["group", {"num_groups": 4}],
            "use_flash_attention": True,
        },
        (64, 64),
    ),
    ("UNETR", UNETR, (32, 16)),
    ("UNETR", {**UNETR, "spatial_dims": 3, "img_size": 16, "qkv_bias": True, "norm_name": "batch"}, (16, 16, 16)),
    ("UNETR", {**UNETR, "conv_block": False, "res_block": False, "save_attn": True}, (32, 16)),
    ("UNETR", {**UNETR, "proj_type": "perceptron", "in_channels": 3, "res_block": False}, (32, 16)),
    ("UNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}, (16, 8, 8)),
    (
        "UNet",
        {
            "spatial_dims": 2,
            "in_channels": 2,
            "out_channels": 3,
            "channels": [4, 6, 8, 10],
            "strides": [2, 1, 2],
            "num_res_units": 3,
            "norm": "batch",
            "act": ["leakyrelu", {"negative_slope": 0.2}],
        },
        (16, 16),
    ),
    ("DynUNet", {**DYNUNET, "spatial_dims": 3}, (16, 8, 8)),
    ("DynUNet", {**DYNUNET, "spatial_dims": 2, "res_block": True, "deep_supervision": True}, (16, 8)),
    ("DynUNet", {**DYNUNET, "spatial_dims": 2, "filters": None, "strides": [2, 2, 2], "norm_name": "batch"}, (16, 16)),
    ("SegResNet", {"spatial_dims": 2, "in_channels": 2}, (16, 16)),
    ("SegResNet", {"upsample_mode": "pixelshuffle", "blocks_down": [1, 1], "blocks_up": [2]}, (8, 8, 8)),
    ("MedNeXt", {**MEDNEXT, "blocks_down": [1, 2], "blocks_up": [2, 1], "global_resp_norm": True}, (8, 8, 8)),
    ("mednext.MedNeXt", {**MEDNEXT, "spatial_dims": 2, "deep_supervision": True}, (32, 32)),
    ("mednext.create_mednext", {"variant": "B", "spatial_dims": 2, "kernel_size": 5}, (32, 32)),
    ("mednext.create_mednext", {"variant": "s", "deep_supervision": True, "in_channels": 2}, (32, 16, 16)),
    ("MedNeXtS", {"spatial_dims": 2, "kernel_size": 5, "out_channels": 3}, (32, 16)),
    ("mednext.MedNeXtMedium", {"spatial_dims": 2}, (16, 32)),
]


def both(name: str, arguments: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """MONAI's network with random weights, and ours with the same."""
    module, _, kind = f"{PREFIX}{name}".rpartition(".")
    torch.manual_seed(0)
    theirs = getattr(importlib.import_module(module), kind)(**arguments)
    with torch.no_grad():
        for tensor in [*theirs.parameters(), *theirs.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    ours = authors.build(f"{PREFIX}{name}", **arguments)
    assert authors.load(ours, theirs.state_dict(), f"{PREFIX}{name}") == {}
    return theirs, ours


def image(arguments: dict, size: tuple[int, ...]) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, arguments.get("in_channels", 1), *size)


@pytest.mark.parametrize(("name", "arguments", "size"), CASES)
def test_equals_monai(name, arguments, size):
    theirs, ours = (network.double().eval() for network in both(name, arguments))  # the arithmetic, not its rounding
    x = image(arguments, size).double()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-8, atol=1e-8)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("name", "arguments", "size"), [CASES[2], CASES[6]])
def test_gradients_equal_monai(name, arguments, size):
    theirs, ours = both(name, arguments)
    x, norms = image(arguments, size), []
    for network in (theirs, ours):
        network.train()(x).pow(2).mean().backward()
        norms.append(sorted(p.grad.norm().item() for p in network.parameters() if p.grad is not None))
    torch.testing.assert_close(*map(torch.tensor, norms), rtol=1e-3, atol=1e-6)


def test_hidden_states_equal_monai():
    arguments = {**SWIN_UNETR, "spatial_dims": 2, "normalize": False}
    torch.manual_seed(0)
    theirs = nets.SwinUNETR(**arguments).eval()
    ours = authors.build(SWIN, **arguments).eval()
    authors.load(ours, {k: v for k, v in theirs.state_dict().items() if k.startswith("swinViT.")}, SWIN)
    x = image(arguments, (64, 64))
    with torch.no_grad():
        for scale in (ours.encode(x)[1:], ours.decoder(ours.encode(x))):
            for a, b in zip(scale, theirs.swinViT(x, normalize=True), strict=True):
                torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"unknown to the network: encoder1\."):
        authors.load(ours, theirs.state_dict(), SWIN)


@needs_golden
@pytest.mark.parametrize("name", [n for n in names("monai_*") if n not in PAPER or n == "absent"])
def test_equals_fixture(name):
    meta = read(name)
    network = loaded(meta)
    with torch.no_grad():
        outputs = network.decoder(network.encode(make_input(meta["input_shape"])))
    assert worst_error(name, outputs) < 1e-5


@needs_golden
@pytest.mark.parametrize("name", ["monai_unet_16_256", "monai_dynunet_nnunet_fullres"])
def test_loads_every_key(name):
    meta = read(name)
    network, state = authors.build(meta["official_class"], **meta["config"]), official_weights(meta)
    assert authors.load(network, state, meta["official_class"]) == {}
    for half in (network.encoder, network.decoder):
        for key, tensor in half.state_dict().items():
            assert all(torch.equal(tensor, state[theirs]) for theirs in half.monai_keys[key])


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("swin_unetr.SwinUNETR", "SwinUNETR"),
        ("unetr.UNETR", "UNETR"),
        ("unet.UNet", "UNet"),
        ("Unet", "UNet"),
        ("dynunet.DynUNet", "DynUNet"),
        ("Dynunet", "DynUNet"),
        ("segresnet.SegResNet", "SegResNet"),
        ("mednext.MedNeXt", "MedNeXt"),
        ("MedNext", "MedNeXt"),
        ("mednext.MedNeXtBase", "MedNeXtB"),
        ("MedNextMedium", "MedNeXtM"),
        ("swin_unetr." + SWIN.removeprefix(PREFIX), SWIN.removeprefix(PREFIX)),
    ],
)
def test_knows_all_names_of_monai(name, canonical):
    assert authors._family(PREFIX + name) == authors._family(PREFIX + canonical)
    assert PREFIX + canonical in authors.official_classes()


def test_hidden_states_of_images_that_are_not_divisible():
    arguments = {**SWIN_UNETR, "spatial_dims": 2}
    torch.manual_seed(0)
    theirs = nets.SwinUNETR(**arguments).eval()
    ours = authors.build(SWIN, **arguments).eval()
    authors.load(ours, {k: v for k, v in theirs.state_dict().items() if k.startswith("swinViT.")}, SWIN)
    x = image(arguments, (49, 40))
    with torch.no_grad():
        for a, b in zip(ours.decoder(ours.encode(x)), theirs.swinViT(x, normalize=True), strict=True):
            torch.testing.assert_close(a, b)


def test_tied_keys():
    arguments = {**DYNUNET, "spatial_dims": 2}
    theirs, ours = both("DynUNet", arguments)
    state = dict(theirs.state_dict())
    once = {key: value for key, value in state.items() if not key.startswith("skip_layers.")}
    assert authors.load(ours, once, f"{PREFIX}DynUNet") == {}
    state["skip_layers.downsample.conv1.conv.weight"] = state["input_block.conv1.conv.weight"] + 1
    with pytest.raises(ValueError, match=r"input_block.conv1.conv.weight, skip_layers.downsample.*several values"):
        authors.load(ours, state, f"{PREFIX}DynUNet")


def test_files_of_older_versions():
    theirs, ours = both("UNETR", UNETR)
    state = {key: value for key, value in theirs.state_dict().items() if "norm_cross_attn" not in key}
    state["vit.blocks.0.cross_attn.to_q.weight"] = torch.zeros(12, 12)
    ignored = authors.load(ours, state, f"{PREFIX}UNETR")
    assert list(ignored) == ["vit.blocks.0.cross_attn.to_q.weight"]
    assert "never used" in ignored["vit.blocks.0.cross_attn.to_q.weight"]


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("SwinUNETR", {**SWIN_UNETR, "img_size": 96}, "SwinUNETR has no argument img_size"),
        ("SwinUNETR", {**SWIN_UNETR, "patch_size": 4}, "SwinUNETR: patch_size is 4; only 2 is supported"),
        ("SwinUNETR", {**SWIN_UNETR, "use_hyena": True}, "use_hyena is True; only False is supported"),
        ("SwinUNETR", {**SWIN_UNETR, "depths": [2, 2], "num_heads": [3, 6]}, "depths is .*only four stages"),
        ("UNETR", {**UNETR, "img_size": 24}, r"img_size is 24; .*divisible by \(16, 16\)"),
        ("SegResNet", {"use_conv_final": False}, "use_conv_final is False; only True is supported"),
        ("SegResNet", {"filters": 8}, "SegResNet has no argument filters"),
        ("mednext.MedNeXt", {"norm_type": "layer"}, "norm_type is 'layer'; only 'group' is supported"),
        ("mednext.create_mednext", {"variant": "X"}, "Invalid MedNeXt variant: X"),
    ],
)
def test_refuses_argument(name, arguments, match):
    with pytest.raises(ValueError, match=match):
        authors.build(f"{PREFIX}{name}", **arguments)


@pytest.mark.parametrize(("name", "needed"), [("SwinUNETR", "in_channels"), ("mednext.create_mednext", "variant")])
def test_needs_argument(name, needed):
    with pytest.raises(TypeError, match=f"needs the argument {needed}"):
        authors.build(f"{PREFIX}{name}")


def test_refuses_foreign_weights():
    _, swin = both("SwinUNETR", {**SWIN_UNETR, "spatial_dims": 2})
    theirs, unet = both("UNet", CASES[10][1])
    before = {key: value.clone() for key, value in swin.state_dict().items()}
    for network, name, wrong in (
        (swin, "SwinUNETR", theirs.state_dict()),
        (swin, "UNet", theirs.state_dict()),
        (unet, "SwinUNETR", theirs.state_dict()),
        (unet, "UNet", {**theirs.state_dict(), "extra": torch.zeros(1)}),
        (unet, "UNet", {}),
    ):
        with pytest.raises(ValueError, match="not the weights of this monai.*Nothing was loaded"):
            authors.load(network, wrong, f"{PREFIX}{name}")
    assert all(torch.equal(value, before[key]) for key, value in swin.state_dict().items())
