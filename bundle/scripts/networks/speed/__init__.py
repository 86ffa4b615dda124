"""The same numbers in less time on CPUs: kernels chosen at each call, and an allocator that keeps its memory."""

from __future__ import annotations

from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from monai.networks.nets.swin_unetr import BasicLayer, WindowAttention
from torch import nn

from ..mednext import MedNeXtDecoder, MedNeXtEncoder
from .allocator import tune_allocator
from .blocks import BLOCKS
from .convolution import FastConv3d, FastConvTranspose3d, Head, Stem
from .residual import FastUnetBasicBlock, FastUnetResBlock
from .window_attention import FastBasicLayer, FastWindowAttention

__all__ = ["accelerate", "tune_allocator"]

FASTER = {
    nn.Conv3d: FastConv3d,
    nn.ConvTranspose3d: FastConvTranspose3d,
    BasicLayer: FastBasicLayer,
    WindowAttention: FastWindowAttention,
    UnetBasicBlock: FastUnetBasicBlock,
    UnetResBlock: FastUnetResBlock,
    **BLOCKS,
}


def accelerate(network: nn.Module) -> nn.Module:
    """Let the parts of a network choose faster ways to the same numbers at each call.

    Parts become instances of subclasses of their classes, with the same parameters, buffers and keys. On float32
    tensors of x86 CPUs these compute the same function by other kernels. Everywhere else, on GPUs, in other precisions,
    under autocast, tracing, compilation or a dispatch mode, they are the classes they extend.

    Args:
        network: any module; it is changed in place.

    Returns:
        The network.

    Example:
        >>> import torch
        >>> from scripts.networks.speed import accelerate
        >>> conv = torch.nn.Conv3d(4, 4, 3, padding=1, groups=4)
        >>> x = torch.randn(1, 4, 8, 8, 8)
        >>> expected = conv(x)
        >>> torch.allclose(accelerate(conv)(x), expected, atol=1e-6)
        True
    """
    for module in network.modules():
        if isinstance(module, MedNeXtEncoder) and type(module.stem) is nn.Conv3d:
            module.stem.__class__ = Stem
        if isinstance(module, MedNeXtDecoder):
            for head in module.heads:
                if type(head) is nn.Conv3d:
                    head.__class__ = Head
        if type(module) in FASTER:
            module.__class__ = FASTER[type(module)]
    return network
