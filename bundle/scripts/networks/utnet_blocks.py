"""UTNet's blocks: residual convolutions, and up blocks of convolutions or of attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .utnet_attention import AttentionOptions, AttentionUpsampling, resize


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a batch normalisation and a ReLU, around a shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution; where it or the channels change, the shortcut is a pre-activated 1x1 one.

    References:
        He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, figure 4(e).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), projection)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H / stride, W / stride)`."""
        out = self.conv1(self.relu(self.bn1(x)))
        return self.conv2(self.relu(self.bn2(out))) + self.shortcut(x)


class ConvUp(nn.Module):
    """Up block of convolutions: the coarser map, upsampled, is joined to the skip.

    Args:
        coarse_channels: channels of the coarser map.
        channels: channels of the skip, and of the output.
        blocks: number of residual blocks, at least 1.
    """

    def __init__(self, coarse_channels: int, channels: int, blocks: int = 2) -> None:
        super().__init__()
        self.conv_ch = nn.Conv2d(coarse_channels, channels, kernel_size=1)
        self.blocks = nn.Sequential(
            ResidualBlock(2 * channels, channels), *(ResidualBlock(channels, channels) for _ in range(blocks - 1))
        )

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Map `(B, coarse_channels, h, w)` and `(B, channels, H, W)` to `(B, channels, H, W)`."""
        x = self.conv_ch(resize(coarse, skip.shape[2:]))
        return self.blocks(torch.cat((skip, x), dim=1))


class AttentionUp(nn.Module):
    """Up block of attention: the skip asks the coarser map, and the answer is joined to the skip.

    Args:
        coarse_channels: channels of the coarser map.
        channels: channels of the skip, and of the output.
        heads: attention heads.
        options: of the attention.
    """

    def __init__(self, coarse_channels: int, channels: int, heads: int, options: AttentionOptions) -> None:
        super().__init__()
        self.attn_decoder = AttentionUpsampling(coarse_channels, channels, heads, options)
        self.blocks = nn.Sequential(ResidualBlock(2 * channels, channels))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Map `(B, coarse_channels, h, w)` and `(B, channels, H, W)` to `(B, channels, H, W)`."""
        x = self.attn_decoder(coarse, skip)
        return self.blocks(torch.cat((x, skip), dim=1))
