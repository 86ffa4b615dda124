"""Segmentation networks: encoders, fusions and decoders that `YNet` puts together."""

from .checkpoints import load_swin_weights, load_weights
from .epa import ConcatBranches, EPABlock, SeparateProjections, SharedProjection, SumBranches, UnbiasedProjection
from .fusion import AddFusion, ClinicalEncoder, ConcatFusion, CrossAttentionFusion, NoFusion
from .mednext import MedNeXtDecoder, MedNeXtEncoder
from .monai_nets import MonaiDecoder, MonaiEncoder
from .nnformer import NNFormerDecoder, NNFormerEncoder
from .res_unet import ResidualEncoder, UNetDecoder
from .resnet_utnet import ResNetEncoder, ResNetUNetDecoder
from .speed import tune_allocator
from .swin import SwinEncoder
from .swin_unet import SwinUNetDecoder, SwinUNetEncoder
from .transbts import TransBTSDecoder, TransBTSEncoder
from .transunet import ImageEncoder, TransUNetDecoder, TransUNetEncoder
from .unetr import UNETRDecoder, ViTEncoder
from .unetr_pp import UNETRPPDecoder, UNETRPPEncoder
from .upkern import upkern, upkern_checkpoint
from .utnet import UTNetDecoder, UTNetEncoder
from .ux_net import UXNetDecoder, UXNetEncoder
from .ynet import YNet

__all__ = [
    "AddFusion",
    "ClinicalEncoder",
    "ConcatBranches",
    "ConcatFusion",
    "CrossAttentionFusion",
    "EPABlock",
    "ImageEncoder",
    "MedNeXtDecoder",
    "MedNeXtEncoder",
    "MonaiDecoder",
    "MonaiEncoder",
    "NNFormerDecoder",
    "NNFormerEncoder",
    "NoFusion",
    "ResNetEncoder",
    "ResNetUNetDecoder",
    "ResidualEncoder",
    "SeparateProjections",
    "SharedProjection",
    "SumBranches",
    "SwinEncoder",
    "SwinUNetDecoder",
    "SwinUNetEncoder",
    "TransBTSDecoder",
    "TransBTSEncoder",
    "TransUNetDecoder",
    "TransUNetEncoder",
    "UNETRDecoder",
    "UNETRPPDecoder",
    "UNETRPPEncoder",
    "UNetDecoder",
    "UTNetDecoder",
    "UTNetEncoder",
    "UXNetDecoder",
    "UXNetEncoder",
    "UnbiasedProjection",
    "ViTEncoder",
    "YNet",
    "load_swin_weights",
    "load_weights",
    "upkern",
    "upkern_checkpoint",
]

tune_allocator()
