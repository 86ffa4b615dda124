"""Every encoder with every decoder of the same strides, with each fusion, in 2D and 3D as the parts allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import scripts.networks as parts
import torch
from monai.networks.nets import DynUNet, SegResNet
from monai.networks.nets.mednext import MedNeXt
from torch import nn

IN, CLASSES, FEATURES, CHANNELS = 4, 3, 4, (8, 16, 32)
FUSIONS = (parts.NoFusion, parts.AddFusion, parts.ConcatFusion, parts.CrossAttentionFusion)
Strides = tuple[int, ...]
HALVES: dict[str, Callable[[int], nn.Module]] = {  # MONAI's networks, cut in two
    "segresnet": lambda dims: SegResNet(dims, 8, IN, CLASSES, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    "dynunet": lambda dims: DynUNet(dims, IN, CLASSES, [3] * 3, [1, 2, 2], [2, 2], filters=CHANNELS),
    "monai_mednext": lambda dims: MedNeXt(
        dims, 8, IN, CLASSES, kernel_size=3, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1)
    ),
}


def size(strides: Strides, dims: int) -> tuple[int, ...]:
    """Size of an image whose coarsest map has four positions or more."""
    return (2 * max(strides[-1], 4),) * dims


def tall(dims: int) -> dict[str, object]:
    """Arguments of all encoders."""
    return {"spatial_dims": dims, "in_channels": IN}


FULL, HALF, QUARTER, LONG = (1, 2, 4), (2, 4, 8, 16), (4, 8), (1, 2, 4, 8, 16)
NNFORMER = {"depths": [1, 1, 1], "num_heads": [1, 1, 1], "window_size": [2, 2, 2]}
RESNET = {"in_channels": IN, "feature_size": 32, "block_units": [1, 1, 1]}
VIT = {"hidden_size": 32, "mlp_dim": 16, "num_heads": 2}
ENCODERS: dict[tuple[str, Strides], Callable[[int], nn.Module]] = {
    ("mednext", FULL): lambda d: parts.MedNeXtEncoder(**tall(d), channels=CHANNELS, blocks=1),
    ("swin", FULL): lambda d: parts.SwinEncoder(
        **tall(d), feature_size=16, depths=[1], num_heads=[2], window_size=2, stem_channels=8
    ),
    ("vit", FULL): lambda d: parts.ViTEncoder(
        **tall(d), **VIT, img_size=size(FULL, d), feature_size=8, num_layers=2, taps=[0]
    ),
    ("ux_net", FULL): lambda d: parts.UXNetEncoder(**tall(d), channels=CHANNELS[1:], depths=[1, 1], kernel_size=3),
    ("residual", FULL): lambda d: parts.ResidualEncoder(**tall(d), channels=CHANNELS, blocks=[1, 1, 1]),
    ("nnformer", FULL): lambda d: parts.NNFormerEncoder(**tall(d), channels=CHANNELS, strides=FULL, **NNFORMER),
    ("transbts", FULL): lambda d: parts.TransBTSEncoder(
        **tall(d), **VIT, img_size=size(FULL, d), channels=CHANNELS, blocks=[1, 1, 1], num_layers=1
    ),
    ("transunet", FULL): lambda d: parts.TransUNetEncoder(
        backbone=ENCODERS["residual", FULL](d), img_size=size(FULL, d), **VIT, num_layers=1
    ),
    ("unetr_pp", FULL): lambda d: parts.UNETRPPEncoder(
        **tall(d), img_size=size(FULL, d), channels=CHANNELS, strides=FULL, depths=[1, 1], projected=[8, 8]
    ),
    **{(name, FULL): lambda d, make=make: parts.MonaiEncoder(network=make(d)) for name, make in HALVES.items()},
    ("resnet", HALF): lambda d: parts.ResNetEncoder(**RESNET, spatial_dims=d),
    ("resnet_utnet", HALF): lambda d: parts.ResNetEncoder(
        **RESNET, spatial_dims=d, attention_levels=[2, 3], reduce_size=2
    ),
    ("transunet", HALF): lambda d: parts.TransUNetEncoder(
        backbone=parts.ResNetEncoder(**RESNET, spatial_dims=d), img_size=size(HALF, d), **VIT, num_layers=1
    ),
    ("nnformer", HALF): lambda d: parts.NNFormerEncoder(
        **tall(d),
        channels=(8, 16, 16, 16),
        strides=HALF,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=[2] * 4,
    ),
    ("swin_unet", QUARTER): lambda d: parts.SwinUNetEncoder(
        **tall(d), img_size=size(QUARTER, d), feature_size=8, depths=[1, 1], num_heads=[2, 2], window_size=2
    ),
    ("nnformer", QUARTER): lambda d: parts.NNFormerEncoder(
        **tall(d), channels=CHANNELS[:2], strides=QUARTER, **{name: value[:2] for name, value in NNFORMER.items()}
    ),
    ("utnet", LONG): lambda d: parts.UTNetEncoder(**tall(d), feature_size=8, reduce_size=2),
    ("mednext", LONG): lambda d: parts.MedNeXtEncoder(**tall(d), channels=[4, 8, 8, 8, 8], blocks=1),
}


def wide(encoder: nn.Module, dims: int) -> dict[str, object]:
    """Arguments of all decoders but TransBTS's."""
    return {
        "spatial_dims": dims,
        "channels": encoder.channels,
        "out_channels": CLASSES,
        "strides": encoder.strides,
    }


def mirrored(name: str) -> Callable[[nn.Module, int], nn.Module]:
    """The way up of a MONAI network, for encoders of its channels."""
    return lambda encoder, dims: parts.MonaiDecoder(network=HALVES[name](dims))


# name -> decoder of an encoder and a number of axes
DECODERS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "mednext": lambda e, d: parts.MedNeXtDecoder(**wide(e, d), blocks=1),
    "unetr": lambda e, d: parts.UNETRDecoder(**wide(e, d), feature_size=4, blocks=[True] * len(e.channels)),
    "unet": lambda e, d: parts.UNetDecoder(**wide(e, d)),
    "ux_net": lambda e, d: parts.UXNetDecoder(**wide(e, d), feature_size=4, hidden_size=8),
    "nnformer": lambda e, d: parts.NNFormerDecoder(
        **wide(e, d),
        **{name: [value[0]] * (len(e.channels) - 1) for name, value in NNFORMER.items()},
    ),
    "transbts": lambda e, d: parts.TransBTSDecoder(
        spatial_dims=d, channels=e.channels, out_channels=CLASSES, hidden_channels=8
    ),
    "transunet": lambda e, d: parts.TransUNetDecoder(**wide(e, d), widths=[4] * (e.strides[-1][0].bit_length())),
    "unetr_pp": lambda e, d: parts.UNETRPPDecoder(
        **wide(e, d), img_size=size([s[0] for s in e.strides], d), depth=1, num_heads=2, projected=8
    ),
    "utnet": lambda e, d: parts.UTNetDecoder(**wide(e, d), reduce_size=2),
    "resnet": lambda e, d: parts.ResNetUNetDecoder(**wide(e, d)),
    "swin_unet": lambda e, d: parts.SwinUNetDecoder(
        **wide(e, d),
        img_size=size([s[0] for s in e.strides], d),
        depths=[1] * len(e.channels),
        num_heads=[1] * len(e.channels),
        window_size=2,
    ),
    **{name: mirrored(name) for name in HALVES},
}
PLANES = {"resnet", "resnet_utnet", "swin_unet", "utnet"}  # what is for planes only,
VOLUMES = {"unetr_pp"}  # and what for volumes
FROM_IMAGE = {"vit", "ux_net"}  # encoders whose finest feature is the image,
FROM_FULL = {"mednext", "unetr", "unet", "ux_net", "transbts", "unetr_pp"}  # decoders that need one of its size


def allows(encoder: str, strides: Strides, decoder: str, dims: int) -> bool:
    """Whether two parts go together by what they are made for."""
    if any(part in (PLANES if dims == 3 else VOLUMES) for part in (encoder, decoder)):
        return False
    if (encoder, strides) == ("transunet", HALF) and dims == 3:  # its backbone is a ResNet
        return False
    if decoder in HALVES:  # which have channels of their own
        return strides == FULL and encoder not in FROM_IMAGE
    return strides[0] == 1 or decoder not in FROM_FULL


PAIRS = [
    (encoder, strides, decoder, dims)
    for encoder, strides in ENCODERS
    for decoder in DECODERS
    for dims in (2, 3)
    if allows(encoder, strides, decoder, dims) and not (strides == LONG and dims == 3)
]


@cache
def encoder_of(name: str, strides: Strides, dims: int) -> nn.Module:
    torch.manual_seed(0)
    return ENCODERS[name, strides](dims).eval()


def image(strides: Strides, dims: int) -> torch.Tensor:
    return torch.randn(1, IN, *size(strides, dims), generator=torch.Generator().manual_seed(1))


@cache
def features_of(name: str, strides: Strides, dims: int) -> list[torch.Tensor]:
    with torch.no_grad():
        return encoder_of(name, strides, dims)(image(strides, dims))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    encoder_of.cache_clear()
    features_of.cache_clear()


def fusion_of(kind: type[nn.Module], channels: int, dims: int) -> nn.Module:
    if kind is parts.NoFusion:
        return kind()
    heads = {"num_heads": 2} if kind is parts.CrossAttentionFusion else {}
    return kind(channels=channels, clinical_features=FEATURES, spatial_dims=dims, hidden=4, **heads)


def test_every_part_is_here():
    made = {type(encoder_of(name, s, 3 if name in VOLUMES else 2)).__name__ for name, s in ENCODERS}
    known = {name for name in parts.__all__ if name.endswith("Encoder")} - {"ClinicalEncoder", "ImageEncoder"}
    assert made == known
    assert {decoder for _, _, decoder, _ in PAIRS} == set(DECODERS)
    assert len([name for name in parts.__all__ if name.endswith("Decoder")]) == len(DECODERS) - len(HALVES) + 1


class Recorded(nn.Module):
    """An encoder that has encoded already."""

    def __init__(self, encoder: nn.Module, features: list[torch.Tensor]) -> None:
        super().__init__()
        self.channels, self.strides, self.features = encoder.channels, encoder.strides, features

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.features


@pytest.mark.parametrize(("name", "strides", "decoder", "dims"), PAIRS)
def test_combines(name: str, strides: Sequence[int], decoder: str, dims: int):
    down = encoder_of(name, strides, dims)
    torch.manual_seed(1)
    up = DECODERS[decoder](down, dims)
    x, clinical = image(strides, dims), torch.randn(1, FEATURES)
    with torch.no_grad():
        for kind in FUSIONS:
            fusion = fusion_of(kind, down.channels[-1], dims)
            encoder = down if kind is parts.NoFusion else Recorded(down, features_of(name, strides, dims))
            logits = parts.YNet(encoder=encoder, decoder=up, fusion=fusion).eval()(x, clinical)
            assert logits.shape == (1, CLASSES, *x.shape[2:])
            assert logits.isfinite().all()
            if kind is parts.NoFusion:
                without = logits
            else:
                assert not torch.equal(logits, without)
