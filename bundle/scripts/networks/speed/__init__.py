"""The same numbers in less time on CPUs: kernels chosen at each call, and an allocator that keeps its memory."""

from __future__ import annotations

from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from monai.networks.nets.swin_unetr import BasicLayer, WindowAttention
from torch import nn

from ..epa import EPA
from ..mednext import MedNeXtDecoder, MedNeXtEncoder
from ..unetr_pp import UNETRPPDecoder
from ..utnet import UTNetDecoder
from . import blocks, grid_attention
from .allocator import tune_allocator
from .convolution import FastConv2d, FastConv3d, FastConvTranspose3d, Head2d, Head3d, Stem
from .paired_attention import FastEPA
from .residual import FastUnetBasicBlock, FastUnetResBlock
from .window_attention import FastBasicLayer, FastWindowAttention

__all__ = ["accelerate", "plain", "tune_allocator"]

FASTER = {
    nn.Conv2d: FastConv2d,
    nn.Conv3d: FastConv3d,
    nn.ConvTranspose3d: FastConvTranspose3d,
    BasicLayer: FastBasicLayer,
    WindowAttention: FastWindowAttention,
    UnetBasicBlock: FastUnetBasicBlock,
    UnetResBlock: FastUnetResBlock,
    EPA: FastEPA,
    **blocks.BLOCKS,
    **grid_attention.BLOCKS,
}
HEADS = {nn.Conv2d: Head2d, nn.Conv3d: Head3d}
TORCHS = {faster: own for own, faster in (*FASTER.items(), *HEADS.items(), (nn.Conv3d, Stem))}


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
        if isinstance(module, (MedNeXtDecoder, UNETRPPDecoder, UTNetDecoder)):
            for head in module.heads:
                head.__class__ = HEADS.get(type(head), type(head))
        module.__class__ = FASTER.get(type(module), type(module))
    return network


def plain(network: nn.Module) -> nn.Module:
    """Undo `accelerate`: let a network round as torch's own operations do.

    Args:
        network: any module; it is changed in place.

    Returns:
        The network.
    """
    for module in network.modules():
        module.__class__ = TORCHS.get(type(module), type(module))
    return network
