"""UNETR++ written plainly: every product, softmax and permutation of the paper as a step of its own.

Shaker et al., "UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation", IEEE TMI 2024,
arXiv:2212.04497; the Synapse network. Parameters have the names of `scripts.networks`, so that weights load.
"""

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import nn
from torch.nn.functional import normalize

WIDTHS = (16, 32, 64, 128, 256)
HEADS = 4


class Projection(nn.Module):
    """The map from N to P tokens that keys and values share."""

    def __init__(self, tokens, projected):
        super().__init__()
        self.both = nn.Linear(tokens, projected)


class Merge(nn.Module):
    """Output projections of the two branches."""

    def __init__(self, channels):
        super().__init__()
        self.spatial = nn.Linear(channels, channels // 2)
        self.channel = nn.Linear(channels, channels // 2)


class EPA(nn.Module):
    """Efficient paired attention, equations 1 to 5."""

    def __init__(self, tokens, channels, projected):
        super().__init__()
        self.qkvv = nn.Linear(channels, 4 * channels, bias=False)
        self.projection = Projection(tokens, projected)
        self.spatial_temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.channel_temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.dropout = nn.Dropout(0.1)
        self.merge = Merge(channels)

    def forward(self, x):
        b, n, c = x.shape
        qkvv = self.qkvv(x).reshape(b, n, 4, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)  # (4, B, heads, N, d)
        q, k, v_channel, v_spatial = (t.transpose(-2, -1) for t in qkvv)  # (B, heads, d, N) each
        k_projected = self.projection.both(k)  # (B, heads, d, P)
        v_projected = self.projection.both(v_spatial)
        q, k = normalize(q, dim=-1), normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.channel_temperature).softmax(dim=-1)  # (B, heads, d, d)
        channel = (self.dropout(attention) @ v_channel).permute(0, 3, 1, 2).reshape(b, n, c)
        attention = (q.transpose(-2, -1) @ k_projected * self.spatial_temperature).softmax(dim=-1)  # (B, heads, N, P)
        spatial = (self.dropout(attention) @ v_projected.transpose(-2, -1)).permute(0, 3, 1, 2).reshape(b, n, c)
        return torch.cat((self.merge.spatial(spatial), self.merge.channel(channel)), dim=-1)


class Block(nn.Module):
    """Paired attention, then residual convolutions, section III-B."""

    def __init__(self, tokens, channels, projected):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, channels))
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.attention = EPA(tokens, channels, projected)
        self.convolutions = nn.Sequential(UnetResBlock(3, channels, channels, 3, 1, norm_name="batch"))
        self.out = nn.Sequential(nn.Dropout3d(0.1), nn.Conv3d(channels, channels, 1))

    def forward(self, x):
        b, c, *spatial = x.shape
        tokens = x.reshape(b, c, -1).permute(0, 2, 1) + self.pos_embed
        tokens = tokens + self.gamma * self.attention(self.norm(tokens))
        x = tokens.permute(0, 2, 1).reshape(b, c, *spatial)
        return x + self.out(self.convolutions(x))


class Encoder(nn.Module):
    """Four stages of three blocks below a convolutional block of the image."""

    def __init__(self, tokens, stem):
        super().__init__()
        self.image_block = UnetResBlock(3, 1, WIDTHS[0], 3, 1, norm_name="instance")
        factors = [stem, *[(2, 2, 2)] * 3]
        self.downsamples = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, f, f, bias=False), nn.GroupNorm(a, b))
            for a, b, f in zip((1, *WIDTHS[1:]), WIDTHS[1:], factors, strict=False)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(n, c, p) for _ in range(3)))
            for n, c, p in zip(tokens[1:], WIDTHS[1:], (64, 64, 64, 32), strict=True)
        )

    def forward(self, x):
        features = [self.image_block(x)]
        for downsample, stage in zip(self.downsamples, self.stages, strict=True):
            x = stage(downsample(x))
            features.append(x)
        return features


class Decoder(nn.Module):
    """Transposed convolutions and additive skips, three blocks at each level but the finest."""

    def __init__(self, tokens, stem, classes):
        super().__init__()
        factors = [stem, *[(2, 2, 2)] * 3]
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(b, a, f, f, bias=False) for a, b, f in zip(WIDTHS, WIDTHS[1:], factors, strict=False)
        )
        self.stages = nn.ModuleList([UnetResBlock(3, WIDTHS[0], WIDTHS[0], 3, 1, norm_name="instance")])
        self.stages.extend(
            nn.Sequential(*(Block(n, c, 64) for _ in range(3))) for n, c in zip(tokens[1:-1], WIDTHS[1:-1], strict=True)
        )
        self.heads = nn.ModuleList([nn.Conv3d(WIDTHS[0], classes, 1)])

    def forward(self, features):
        x = features[-1]
        for up, stage, skip in zip(self.ups[::-1], self.stages[::-1], features[-2::-1], strict=True):
            x = stage(up(x) + skip)
        return self.heads[0](x)


class UNETRPP(nn.Module):
    """UNETR++ for images `(B, 1, *size)`; `stem` is the stride of the first stage per axis."""

    def __init__(self, size, stem, classes):
        super().__init__()
        tokens = [size[0] * size[1] * size[2]]
        tokens += [tokens[0] // (stem[0] * stem[1] * stem[2]) // 8**level for level in range(4)]
        self.encoder = Encoder(tokens, stem)
        self.decoder = Decoder(tokens, stem, classes)

    def forward(self, x):
        return self.decoder(self.encoder(x))
