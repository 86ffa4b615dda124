"""UTNet's blocks with channels last, norm and ReLU in one step, and keys and values computed where they are needed.

Resampling a map bilinearly and mapping each position linearly can change places. So keys and values are made for the
small grid only, not for every pixel. Heads, which are interleaved over the channels, are put next to each other in the
weights, so that no map has to be permuted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utnet_attention import AttentionBlock, AttentionUpsampling, CrossAttention, SelfAttention, resize
from ..utnet_blocks import ConvUp, ResidualBlock
from .conditions import applies, call, watched
from .convolution import pointwise
from .depthwise import DepthwiseConv
from .dropout import dropout
from .few_keys import FewKeysAttention
from .layout import channels_last
from .normalisation import batch_norm_act, is_standard_batch_norm


class _Fast:
    """Module of a network for planes; stands before its class and falls back on it."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        if x.ndim == 4 and x.numel() and applies(x, *others, *self.parameters()) and self._is_standard():
            return call(self._forward, x, *others)
        return super().forward(x, *others)

    def _is_standard(self) -> bool:
        """Whether the layers are those that these steps know, and nobody watches what they skip."""
        return all(
            not watched(layer)
            and (not isinstance(layer, nn.modules.batchnorm._BatchNorm) or is_standard_batch_norm(layer))
            for layer in self.modules()
            if layer is not self
        )


class FastResidualBlock(_Fast, ResidualBlock):
    """Faster `ResidualBlock`."""

    def _forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        out = self.conv1(batch_norm_act(self.bn1, x, None, 0.0))
        out = self.conv2(batch_norm_act(self.bn2, out, None, 0.0))
        if not len(self.shortcut):
            return out + x
        norm, _, projection = self.shortcut
        return out + projection(batch_norm_act(norm, x, None, 0.0))


class FastConvUp(_Fast, ConvUp):
    """Faster `ConvUp`: channels are mapped before the map grows."""

    def _forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        x = resize(self.conv_ch(channels_last(coarse)), skip.shape[2:])
        return self.blocks(torch.cat((channels_last(skip), x), dim=1))


class FastAttentionBlock(_Fast, AttentionBlock):
    """Faster `AttentionBlock`."""

    def _forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        x = x + self.attn(batch_norm_act(self.bn1, x, None, 1.0))
        return x + self.mlp(batch_norm_act(self.bn2, x, None, 0.0))


class FastAttentionUpsampling(_Fast, AttentionUpsampling):
    """Faster `AttentionUpsampling`."""

    def _forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        coarse, fine = channels_last(coarse), channels_last(fine)
        x = resize(self.conv_ch(coarse), fine.shape[2:])
        fine, coarse = batch_norm_act(self.bn_h, fine, None, 1.0), batch_norm_act(self.bn_l, coarse, None, 1.0)
        x = x + self.attn(fine, coarse)
        return x + self.mlp(batch_norm_act(self.bn2, x, None, 0.0))


class _FastAttention(_Fast):
    """Efficient attention; `attend` takes what the pointwise convolutions would have mapped."""

    def _is_standard(self) -> bool:
        return self.project is resize and super()._is_standard()

    def _attend(self, queries: Tensor, keys_values: Tensor, to_q: Tensor, to_kv: Tensor) -> Tensor:
        """Attention of pixels over a reduced map.

        Args:
            queries: `(B, C, H, W)`.
            keys_values: `(B, C', h, w)`.
            to_q: weights `(inner_channels, C)`.
            to_kv: weights `(2 * inner_channels, C')`.

        Returns:
            `(B, channels, H, W)`.
        """
        heads, size, r = self.heads, queries.shape[2:], self.reduce_size
        few = resize(keys_values, (r, r)).movedim(1, -1).flatten(1, 2)  # (B, r * r, C')
        kv = F.linear(few, _heads_first(to_kv, 2, heads)).unflatten(-1, (2, heads, -1))  # (B, r * r, 2, heads, d)
        k, v = kv.permute(2, 0, 3, 1, 4)  # (B, heads, r * r, d) each
        q = F.linear(queries.movedim(1, -1).flatten(1, 2), _heads_first(to_q, 1, heads))  # (B, H * W, heads * d)
        q = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, H * W, d)
        bias = None if self.position is None else self.position()
        p = self.attn_drop.p if self.attn_drop.training else 0.0
        x = FewKeysAttention.apply(q, k, v, bias, size, self.head_channels**-0.5, p)
        x = x.transpose(1, 2).flatten(2).unflatten(1, size).movedim(-1, 1)  # (B, heads * d, H, W), channels last
        return self._project(x)

    def _project(self, x: Tensor) -> Tensor:
        depthwise, mix = self.to_out
        x = _depthwise(depthwise, x, _heads_first(depthwise.weight, 1, self.heads))
        weight = _heads_first(mix.weight.transpose(0, 1), 1, self.heads).transpose(0, 1)
        x = pointwise(x, weight, None, mix.stride)
        return dropout(x, self.proj_drop.p) if self.proj_drop.training else x


class FastSelfAttention(_FastAttention, SelfAttention):
    """Faster `SelfAttention`."""

    def _forward(self, x: Tensor) -> Tensor:
        depthwise, mix = self.to_qkv
        x = _depthwise(depthwise, channels_last(x), depthwise.weight)
        to_q, to_kv = mix.weight.flatten(1).split((self.inner_channels, 2 * self.inner_channels))
        return self._attend(x, x, to_q, to_kv)


class FastCrossAttention(_FastAttention, CrossAttention):
    """Faster `CrossAttention`."""

    def _forward(self, x: Tensor, source: Tensor) -> Tensor:
        maps = []
        for (depthwise, _), y in ((self.to_q, x), (self.to_kv, source)):
            maps.append(_depthwise(depthwise, channels_last(y), depthwise.weight))
        return self._attend(*maps, self.to_q.pointwise.weight.flatten(1), self.to_kv.pointwise.weight.flatten(1))


def _depthwise(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return DepthwiseConv.apply(x, weight, conv.bias, conv.stride, conv.padding)


def _heads_first(weight: Tensor, parts: int, heads: int) -> Tensor:
    """Weights whose first axis has channel c of each part for head c % heads, with the channels of a head together."""
    return weight.unflatten(0, (parts, -1, heads)).transpose(1, 2).flatten(0, 2)


BLOCKS = {
    ResidualBlock: FastResidualBlock,
    ConvUp: FastConvUp,
    AttentionBlock: FastAttentionBlock,
    AttentionUpsampling: FastAttentionUpsampling,
    SelfAttention: FastSelfAttention,
    CrossAttention: FastCrossAttention,
}
