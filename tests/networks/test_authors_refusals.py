"""Whatever is wrong with an argument of an authors' class: it is refused, and named, or it changes nothing."""

from __future__ import annotations

import ast

import pytest
import torch
from scripts.networks import authors

SMALL = {
    "monai.networks.nets.DynUNet": {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
    },
    "monai.networks.nets.MedNeXt": {"spatial_dims": 2, "init_filters": 4, "blocks_down": [1], "blocks_up": [1]},
    "monai.networks.nets.SegResNet": {"spatial_dims": 2, "blocks_down": [1, 1], "blocks_up": [1]},
    "monai.networks.nets.SwinUNETR": {
        "in_channels": 1,
        "out_channels": 2,
        "feature_size": 12,
        "spatial_dims": 2,
        "depths": [1, 1, 1, 1],
    },
    "monai.networks.nets.UNETR": {
        "in_channels": 1,
        "out_channels": 2,
        "img_size": 16,
        "spatial_dims": 2,
        "feature_size": 4,
        "hidden_size": 12,
        "mlp_dim": 16,
        "num_heads": 2,
    },
    "monai.networks.nets.UNet": {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
    },
    "model.resnet_utnet.ResNet_UTNet": {"in_ch": 1, "num_class": 2, "block_units": [1, 1, 1]},
    "model.swin_unet.SwinUnet": {"num_classes": 2, "img_size": 64, "window_size": 2, "embed_dim": 24},
    "model.transunet.VisionTransformer": {
        "config": "R50-ViT-B_16",
        "img_size": 32,
        "grid": [2, 2],
        "hidden_size": 12,
        "mlp_dim": 16,
        "num_layers": 1,
    },
    "model.utnet.UTNet": {"in_chan": 1, "base_chan": 4, "reduce_size": 2},
    "nnunet_mednext.MedNeXt": {"in_channels": 1, "n_channels": 2, "n_classes": 2, "kernel_size": 3},
    "nnunet_mednext.create_mednext_v1": {"num_input_channels": 1, "num_classes": 2, "model_id": "S"},
    "unetr_pp.network_architecture.synapse.unetr_pp_synapse.UNETR_PP": {
        "in_channels": 1,
        "out_channels": 2,
        "img_size": [16, 32, 32],
        "feature_size": 2,
        "hidden_size": 32,
    },
}
WRONG = ("wrong", -1)


def arguments(name: str) -> list[str]:
    """All arguments of a class, as its refusal of another one lists them."""
    with pytest.raises(ValueError, match="has no argument wings; it has") as refusal:
        authors.build(name, wings=2)
    return ast.literal_eval(str(refusal.value).split("it has ")[1].rstrip("."))


def refusal(name: str, argument: str, value: object) -> Exception | None:
    """What is raised for one value of an argument; None where the class takes it."""
    with torch.device("cpu" if "SwinUNETR" in name else "meta"):  # building MONAI's computes
        try:
            authors.build(name, **SMALL[name] | {argument: value})
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_value_is_refused_by_the_name_of_its_argument(name):
    known = arguments(name)
    assert refusal(name, known[0], SMALL[name].get(known[0], 2)) is None  # the others are right
    found = {(argument, str(value)): refusal(name, argument, value) for argument in known for value in WRONG}
    raised = {key: error for key, error in found.items() if error is not None}
    assert {key: error for key, error in raised.items() if not isinstance(error, (ValueError, TypeError))} == {}
    assert {key: error for key, error in raised.items() if key[0] not in str(error)} == {}
    flags = ("rel_pos", "do_res", "do_ds", "normalize", "deep_supervision", "qkv_bias")
    assert all(key in raised for key in found if key[0] in flags and key[1] == "wrong")  # as of --do_res false
