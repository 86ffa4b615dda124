"""TransUNet as UTNet's authors compare with it (`yhygao/UTNet`): its configurations by name, and its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ..resnet_utnet import GROUPS, ResNetEncoder
from ..transunet import ImageEncoder, TransUNetDecoder, TransUNetEncoder
from ..ynet import YNet
from .arguments import bind
from .keys import rename

OFFICIAL = ("model.transunet.VisionTransformer",)
STRIDE, BLOCKS = 16, 4  # of the coarsest map; the decoder doubles it so many times
STEM = 512  # width of the decoder before the first doubling

DEFAULTS = {
    "config": ...,
    "img_size": 224,
    "n_classes": 2,
    "decoder_channels": (256, 128, 64, 16),
    "dropout_rate": 0.1,
    "attention_dropout_rate": 0.0,
}
IGNORED = {  # what the authors' class takes, and no number depends on
    "num_classes": 21843,
    "zero_head": False,
    "vis": False,
    "classifier": "seg",
    "activation": "softmax",
    "representation_size": None,
    "patch_size": 16,
    "pretrained_path": None,
    "resnet_pretrained_path": None,
}
BASE = {"hidden_size": 768, "mlp_dim": 3072, "num_heads": 12, "num_layers": 12}
LARGE = {"hidden_size": 1024, "mlp_dim": 4096, "num_heads": 16, "num_layers": 24}
PLAIN = {"size": (16, 16), "n_skip": ..., "skip_channels": (0, 0, 0, 0)}
HYBRID = {
    "size": (16, 16),  # not read: the grid decides
    "grid": (16, 16),
    "n_skip": ...,
    "skip_channels": (512, 256, 64, 16),
    "resnet_num_layers": (3, 4, 9),
    "resnet_width_factor": 1,
}
CONFIGS: dict[str, dict[str, object]] = {
    "R50-ViT-B_16": BASE | HYBRID | {"n_skip": 3},
    "R50-ViT-L_16": LARGE | HYBRID,
    "ViT-B_16": BASE | PLAIN,
    "ViT-L_16": LARGE | PLAIN,
}


def build(official_class: str, arguments: Mapping[str, object]) -> YNet:
    """Build TransUNet from the name of one of the authors' configurations and what is changed in it.

    Args:
        official_class: one of `OFFICIAL`.
        arguments: `config` is the name; any other is an argument of the authors' class, or an entry of the
            configuration: `hidden_size`, `mlp_dim`, `num_heads`, `grid`, `n_skip`, ...; those of its ResNet are
            `resnet_num_layers` and `resnet_width_factor`.

    Returns:
        The network; as the authors' it takes images of one or three channels.

    Raises:
        ValueError: if an argument is unknown or not supported: images that are not square, patches of another side
            than 16 pixels, skips whose channels are not the ResNet's; with these the authors' network fails too, or
            its mask is smaller than the image.
        TypeError: if a required one is missing.
    """
    name = arguments.get("config", "R50-ViT-B_16")
    if name not in CONFIGS:
        raise ValueError(f"{official_class}: config is {name!r}; only {list(CONFIGS)} are supported.")
    a = bind(official_class, arguments, DEFAULTS | CONFIGS[name] | IGNORED)
    side = _side(official_class, a)
    widths = list(a["decoder_channels"])
    if len(widths) != BLOCKS:
        raise ValueError(f"{official_class}: decoder_channels is {widths}; only {BLOCKS} numbers are supported.")
    if a["n_skip"] not in range(BLOCKS):
        raise ValueError(f"{official_class}: n_skip is {a['n_skip']!r}; only 0 to {BLOCKS - 1} are supported.")
    backbone = _resnet(official_class, a, side) if "grid" in a else _image(official_class, a)
    encoder = TransUNetEncoder(
        backbone=backbone,
        img_size=side,
        patch_size=STRIDE // backbone.strides[-1][0],
        dropout_rate=a["dropout_rate"],
        attention_dropout_rate=a["attention_dropout_rate"],
        **{key: a[key] for key in BASE},
    )
    decoder = TransUNetDecoder(
        channels=encoder.channels,
        out_channels=a["n_classes"],
        strides=encoder.strides,
        widths=[*reversed(widths), STEM],
        skips=min(a["n_skip"], len(encoder.channels) - 1),
    )
    return YNet(encoder=encoder, decoder=decoder)


def translate(
    network: YNet, state_dict: Mapping[str, Tensor], official_class: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Bring the authors' weights under our keys; unknown keys stay as they are."""
    return rename(state_dict, _our_key), {}


def _our_key(key: str) -> str:
    key = re.sub(r"^transformer\.embeddings\.hybrid_model\.root\.", "encoder.backbone.root.", key)
    key = re.sub(
        r"^transformer\.embeddings\.hybrid_model\.body\.block([1-3])\.unit([1-9]\d*)\.",
        lambda unit: f"encoder.backbone.stages.{int(unit[1]) - 1}.{int(unit[2]) - 1}.",
        key,
    )
    key = re.sub(r"^transformer\.embeddings\.patch_embeddings\.", "encoder.embedding.", key)
    key = re.sub(r"^transformer\.embeddings\.position_embeddings$", "encoder.positions", key)
    key = re.sub(r"^transformer\.encoder\.layer\.", "encoder.blocks.", key)
    key = re.sub(r"^transformer\.encoder\.encoder_norm\.", "encoder.norm.", key)
    key = re.sub(r"^decoder\.conv_more\.", "decoder.stem.", key)
    key = re.sub(r"^decoder\.blocks\.([0-3])\.", lambda block: f"decoder.ups.{BLOCKS - 1 - int(block[1])}.", key)
    return re.sub(r"^segmentation_head\.0\.", "decoder.head.", key)


def _side(official_class: str, arguments: Mapping[str, object]) -> int:
    """Side of the image, which must be a square of patches of 16 pixels."""
    height, width = _pair(arguments["img_size"])
    if height != width or height % STRIDE:
        raise ValueError(
            f"{official_class}: img_size is {arguments['img_size']!r}; only squares of a multiple of {STRIDE} are "
            "supported."
        )
    return height


def _resnet(official_class: str, arguments: Mapping[str, object], side: int) -> nn.Module:
    tokens = side // STRIDE
    if any(n < 1 or tokens // n != 1 for n in _pair(arguments["grid"])):  # the side of a token, as the authors have it
        raise ValueError(
            f"{official_class}: grid is {arguments['grid']!r}; only {(tokens, tokens)}, a {STRIDE}th of img_size, is "
            "supported."
        )
    width = int(64 * arguments["resnet_width_factor"])
    if width < 1 or width % GROUPS:
        raise ValueError(
            f"{official_class}: resnet_width_factor is {arguments['resnet_width_factor']!r}; only multiples of "
            f"{GROUPS / 64} are supported."
        )
    units = list(arguments["resnet_num_layers"])
    if len(units) != BLOCKS - 1 or min(units) < 1:
        raise ValueError(
            f"{official_class}: resnet_num_layers is {units}; only {BLOCKS - 1} numbers of at least 1 are supported."
        )
    n_skip = arguments["n_skip"]
    needed = [8 * width, 4 * width, width][:n_skip]
    if list(arguments["skip_channels"][:n_skip]) != needed:
        raise ValueError(
            f"{official_class}: skip_channels is {arguments['skip_channels']!r}; only {needed}, the channels of the "
            f"ResNet at resnet_width_factor {arguments['resnet_width_factor']}, are supported as the first {n_skip}."
        )
    return ResNetEncoder(in_channels=3, feature_size=width, block_units=units)


def _image(official_class: str, arguments: Mapping[str, object]) -> nn.Module:
    if _pair(arguments["size"]) != (STRIDE, STRIDE):
        raise ValueError(f"{official_class}: size is {arguments['size']!r}; only {STRIDE} is supported.")
    if any(arguments["skip_channels"][: arguments["n_skip"]]):
        raise ValueError(
            f"{official_class}: skip_channels is {arguments['skip_channels']!r}; only zeros are supported: there is no "
            "ResNet."
        )
    return ImageEncoder(in_channels=3)


def _pair(value: object) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
