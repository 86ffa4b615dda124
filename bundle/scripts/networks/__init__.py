"""Segmentation networks: encoders, fusions and decoders that `YNet` puts together."""

from .checkpoints import load_swin_weights, load_weights
from .fusion import AddFusion, ClinicalEncoder, ConcatFusion, CrossAttentionFusion, NoFusion
from .mednext import MedNeXtDecoder
from .swin import SwinEncoder
from .ynet import YNet

__all__ = [
    "AddFusion",
    "ClinicalEncoder",
    "ConcatFusion",
    "CrossAttentionFusion",
    "MedNeXtDecoder",
    "NoFusion",
    "SwinEncoder",
    "YNet",
    "load_swin_weights",
    "load_weights",
]
