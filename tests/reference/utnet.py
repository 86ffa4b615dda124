"""UTNet written plainly: every product, softmax and permutation of the paper as a step of its own.

Gao et al., "UTNet: A Hybrid Transformer Architecture for Medical Image Segmentation", MICCAI 2021, arXiv:2107.00781;
attention at every level but the finest. Parameters have the names of `scripts.networks`, so that weights load.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import interpolate

WIDTHS = (32, 64, 128, 256, 512)
HEADS, GRID = 4, 8


def resize(x, size):
    """Bilinear interpolation, corners on corners."""
    return interpolate(x, size=size, mode="bilinear", align_corners=True)


def separable(a, b):
    """Depthwise, then pointwise convolution."""
    depthwise, pointwise = nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False), nn.Conv2d(a, b, 1, bias=False)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


class Residual(nn.Module):
    """Pre-activated residual block of two convolutions."""

    def __init__(self, a, b):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(a), nn.Conv2d(a, b, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(b), nn.Conv2d(b, b, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if a != b:
            self.shortcut = nn.Sequential(nn.BatchNorm2d(a), nn.ReLU(inplace=True), nn.Conv2d(a, b, 1, bias=False))

    def forward(self, x):
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        return y + self.shortcut(x)


class Position(nn.Module):
    """Learned bias for the offset between two cells of the grid, given to each pixel of a cell."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn((2 * GRID - 1) ** 2, HEADS))
        axis = torch.arange(GRID)
        y, x = axis.repeat_interleave(GRID), axis.repeat(GRID)
        index = (y[:, None] - y + GRID - 1) * (2 * GRID - 1) + x[:, None] - x + GRID - 1
        self.register_buffer("index", index.reshape(-1), persistent=False)

    def forward(self, height, width):
        bias = self.table[self.index].reshape(GRID, GRID, GRID**2, HEADS)
        bias = bias.repeat_interleave(height // GRID, dim=0).repeat_interleave(width // GRID, dim=1)
        return bias.reshape(height * width, GRID**2, HEADS).permute(2, 0, 1)  # (heads, H * W, keys)


class Attention(nn.Module):
    """Attention of pixels over a map reduced to a grid, equations 3 and 4."""

    def __init__(self, channels):
        super().__init__()
        self.position = Position()
        self.to_out = separable(channels, channels)
        self.drop, self.proj_drop = nn.Dropout(0.1), nn.Dropout(0.1)

    def attend(self, q, k, v):
        b, c, height, width = q.shape
        k, v = resize(k, (GRID, GRID)), resize(v, (GRID, GRID))
        # Channel i belongs to head i % heads
        q, k, v = (t.reshape(b, c // HEADS, HEADS, -1).permute(0, 2, 3, 1) for t in (q, k, v))  # (B, heads, N, d)
        attention = torch.einsum("bhid,bhjd->bhij", q, k)
        attention = (attention + self.position(height, width)) * (c // HEADS) ** -0.5
        attention = self.drop(attention.softmax(dim=-1))
        x = torch.einsum("bhij,bhjd->bhid", attention, v)
        x = x.permute(0, 3, 1, 2).reshape(b, c, height, width)
        return self.proj_drop(self.to_out(x))


class SelfAttention(Attention):
    """Of a map over itself."""

    def __init__(self, channels):
        super().__init__(channels)
        self.to_qkv = separable(channels, 3 * channels)

    def forward(self, x):
        return self.attend(*self.to_qkv(x).chunk(3, dim=1))


class CrossAttention(Attention):
    """Of the finer map over the coarser one."""

    def __init__(self, coarse, fine):
        super().__init__(fine)
        self.to_kv, self.to_q = separable(coarse, 2 * fine), separable(fine, fine)

    def forward(self, x, coarse):
        return self.attend(self.to_q(x), *self.to_kv(coarse).chunk(2, dim=1))


class Block(nn.Module):
    """Attention and a pointwise layer, each pre-activated and residual, figure 1(b)."""

    def __init__(self, channels):
        super().__init__()
        self.bn1, self.attn = nn.BatchNorm2d(channels), SelfAttention(channels)
        self.bn2, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.mlp = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x):
        x = x + self.attn(self.bn1(x))
        return x + self.mlp(self.relu(self.bn2(x)))


class Upsampling(nn.Module):
    """Attention that upsamples, figure 1(c)."""

    def __init__(self, coarse, fine):
        super().__init__()
        self.bn_l, self.bn_h = nn.BatchNorm2d(coarse), nn.BatchNorm2d(fine)
        self.conv_ch, self.attn = nn.Conv2d(coarse, fine, 1), CrossAttention(coarse, fine)
        self.bn2, self.relu = nn.BatchNorm2d(fine), nn.ReLU(inplace=True)
        self.mlp = nn.Conv2d(fine, fine, 1, bias=False)

    def forward(self, coarse, fine):
        x = resize(self.conv_ch(coarse), fine.shape[2:]) + self.attn(self.bn_h(fine), self.bn_l(coarse))
        return x + self.mlp(self.relu(self.bn2(x)))


class AttentionUp(nn.Module):
    """Up block of attention."""

    def __init__(self, coarse, fine):
        super().__init__()
        self.attn_decoder = Upsampling(coarse, fine)
        self.blocks = nn.Sequential(Residual(2 * fine, fine))

    def forward(self, coarse, skip):
        return self.blocks(torch.cat((self.attn_decoder(coarse, skip), skip), dim=1))


class ConvUp(nn.Module):
    """Up block of convolutions."""

    def __init__(self, coarse, fine):
        super().__init__()
        self.conv_ch = nn.Conv2d(coarse, fine, 1)
        self.blocks = nn.Sequential(Residual(2 * fine, fine), Residual(fine, fine))

    def forward(self, coarse, skip):
        return self.blocks(torch.cat((skip, self.conv_ch(resize(coarse, skip.shape[2:]))), dim=1))


class Encoder(nn.Module):
    """Five levels, with attention at all but the first."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(Residual(1, WIDTHS[0]), Residual(WIDTHS[0], WIDTHS[0]))])
        for a, b in zip(WIDTHS, WIDTHS[1:], strict=False):
            self.stages.append(nn.Sequential(nn.MaxPool2d(2), Residual(a, b), Block(b)))

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Four up blocks, with attention in all but the finest."""

    def __init__(self, classes):
        super().__init__()
        blocks = (ConvUp, AttentionUp, AttentionUp, AttentionUp)
        self.ups = nn.ModuleList(up(b, a) for up, a, b in zip(blocks, WIDTHS, WIDTHS[1:], strict=False))
        self.heads = nn.ModuleList([nn.Conv2d(WIDTHS[0], classes, 1)])

    def forward(self, features):
        x = features[-1]
        for up, skip in zip(self.ups[::-1], features[-2::-1], strict=True):
            x = up(x, skip)
        return self.heads[0](x)


class UTNet(nn.Module):
    """UTNet for images `(B, 1, H, W)`."""

    def __init__(self, classes):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder(classes)

    def forward(self, x):
        return self.decoder(self.encoder(x))
