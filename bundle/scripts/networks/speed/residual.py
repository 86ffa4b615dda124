"""MONAI's convolutional blocks of U-Nets, with channels last and the normalisation and activation in one step."""

from __future__ import annotations

import math

from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn

from .conditions import applies, call, watched
from .layout import channels_last
from .normalisation import batch_norm_act, instance_norm_act, is_standard_batch_norm


class _FastUnetBlock:
    """Two convolutions, each with a normalisation and an activation; stands before a block's class."""

    def forward(self, inp: Tensor) -> Tensor:
        batch = inp.ndim == 5 and len(inp) > 0 and math.prod(inp.shape[2:]) > 1
        if batch and applies(inp, *self.parameters()) and self._is_standard():
            return call(self._forward, inp)
        return super().forward(inp)

    def _forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        y = self._norm_act(self.norm1, self.conv1(x))
        return self._norm_act(self.norm2, self.conv2(y), self._residual(x))

    def _residual(self, x: Tensor) -> Tensor | None:
        return None

    def _norm_act(self, norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return _norm_act(norm, x, residual, self.lrelu.negative_slope)

    def _is_standard(self) -> bool:
        """Whether the block is made of what these steps compute, and nobody watches what they skip."""
        norms = [layer for name, layer in self.named_children() if name.startswith("norm")]
        return (
            all(_is_standard(norm) for norm in norms)
            and type(self.lrelu) is nn.LeakyReLU
            and self.lrelu.negative_slope >= 0
            and not any(map(watched, (*norms, self.lrelu)))
        )


class FastUnetBasicBlock(_FastUnetBlock, UnetBasicBlock):
    """Faster `UnetBasicBlock` of MONAI."""


class FastUnetResBlock(_FastUnetBlock, UnetResBlock):
    """Faster `UnetResBlock` of MONAI."""

    def _residual(self, x: Tensor) -> Tensor:
        if not hasattr(self, "conv3"):
            return x
        return _norm_act(self.norm3, self.conv3(x), None, 1.0)


def _norm_act(norm: nn.Module, x: Tensor, residual: Tensor | None, slope: float) -> Tensor:
    norm_act = batch_norm_act if isinstance(norm, nn.BatchNorm3d) else instance_norm_act
    return norm_act(norm, x, residual, slope)


def _is_standard(norm: nn.Module) -> bool:
    instance = type(norm) is nn.InstanceNorm3d and not norm.track_running_stats
    return instance or is_standard_batch_norm(norm)
