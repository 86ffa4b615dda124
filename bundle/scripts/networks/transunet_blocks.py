"""TransUNet's blocks: transformer blocks on tokens, and up blocks of convolutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.layers import Conv, Norm
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6  # of the layer normalisations
INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class TokenAttention(nn.Module):
    """Multi-head self-attention of tokens.

    Args:
        width: width C of the tokens.
        heads: number of heads; must divide `width`.
        dropout: of the attention weights and of the output, in [0, 1).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, C)` to the same shape."""
        q, k, v = (self._split_heads(part(x)) for part in (self.query, self.key, self.value))
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout.p if self.training else 0.0)
        return self.dropout(self.out(x.transpose(1, 2).flatten(2)))  # (B, N, C)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)


class TransformerBlock(nn.Module):
    """Attention and a hidden layer, each after a layer normalisation and residual.

    Args:
        width: width C of the tokens.
        mlp_dim: width of the hidden layer.
        heads: attention heads; must divide `width`.
        dropout: of the hidden layer and its output, in [0, 1).
        attention_dropout: of the attention weights and its output, in [0, 1).

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, equations 2 and 3.
    """

    def __init__(self, width: int, mlp_dim: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.attn = TokenAttention(width, heads, attention_dropout)
        self.ffn_norm = nn.LayerNorm(width, eps=EPS)
        self.ffn = hidden_layer(width, mlp_dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, C)` to the same shape."""
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class UpBlock(nn.Module):
    """Upsampling by 2, a concatenated skip if there is one, and two convolutions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the coarser map.
        skip_channels: channels of the skip; 0: there is none.
        out_channels: channels of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mode = INTERPOLATION[spatial_dims]
        self.conv1 = convolution(spatial_dims, in_channels + skip_channels, out_channels)
        self.conv2 = convolution(spatial_dims, out_channels, out_channels)

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Map `(B, in_channels, *spatial)` and no or one skip to `(B, out_channels, *2 * spatial)`."""
        x = F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=True)
        return self.conv2(self.conv1(torch.cat((x, *skips), dim=1)))


def convolution(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution of side 3, batch normalisation and ReLU."""
    conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(conv, Norm[Norm.BATCH, spatial_dims](out_channels), nn.ReLU(inplace=True))


def hidden_layer(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two linear layers around a GELU, each with dropout behind it."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(width, hidden),
            gelu=nn.GELU(),
            dropout1=nn.Dropout(dropout),
            fc2=nn.Linear(hidden, width),
            dropout2=nn.Dropout(dropout),
        )
    )
