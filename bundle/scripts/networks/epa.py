"""Efficient paired attention (EPA): spatial and channel attention that share their queries and keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
if CPU_ATTENTION not in flop_registry:  # torch's counter knows fused attention on CUDA only and would count nothing
    register_flop_formula(CPU_ATTENTION, get_raw=True)(sdpa_flop)


class SharedProjection(nn.Module):
    """One linear map over the tokens for both keys and values, as in the authors' Synapse network.

    Args:
        tokens: number N of tokens.
        projected: number P of tokens that are left.
    """

    def __init__(self, *, tokens: int, projected: int) -> None:
        super().__init__()
        self.both = nn.Linear(tokens, projected)

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Project keys and values `(B, N, C)` to `(B, P, C)`."""
        return _over_tokens(self.both, keys), _over_tokens(self.both, values)


class SeparateProjections(nn.Module):
    """One linear map over the tokens for the keys and one for the values, as in the authors' ACDC and lung networks.

    Args:
        tokens: number N of tokens.
        projected: number P of tokens that are left.
    """

    def __init__(self, *, tokens: int, projected: int) -> None:
        super().__init__()
        self.keys = nn.Linear(tokens, projected)
        self.values = nn.Linear(tokens, projected)

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Project keys and values `(B, N, C)` to `(B, P, C)`."""
        return _over_tokens(self.keys, keys), _over_tokens(self.values, values)


class UnbiasedProjection(nn.Module):
    """One matrix for keys and values, with no bias and larger at the start, as in the authors' tumour network.

    Args:
        tokens: number N of tokens.
        projected: number P of tokens that are left.
    """

    def __init__(self, *, tokens: int, projected: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(tokens, projected).uniform_(-(projected**-0.5), projected**-0.5))

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Project keys and values `(B, N, C)` to `(B, P, C)`."""
        return self.matrix.T @ keys, self.matrix.T @ values


class ConcatBranches(nn.Module):
    """Map the spatial and the channel branch to half of the channels each and concatenate them.

    Args:
        channels: channels C of each branch, even.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Linear(channels, channels // 2)
        self.channel = nn.Linear(channels, channels // 2)

    def forward(self, spatial: Tensor, channel: Tensor) -> Tensor:
        """Merge two branches `(B, N, C)` into one `(B, N, C)`."""
        return torch.cat((self.spatial(spatial), self.channel(channel)), dim=-1)


class SumBranches(nn.Module):
    """Add the spatial and the channel branch, as in the authors' tumour network.

    Args:
        channels: channels C of each branch.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()

    def forward(self, spatial: Tensor, channel: Tensor) -> Tensor:
        """Merge two branches `(B, N, C)` into one `(B, N, C)`."""
        return spatial + channel


class EPA(nn.Module):
    """Efficient paired attention: each token looks at P projected tokens, each channel at all channels of its head.

    Both branches use the same queries and keys, normalised over the tokens; each has its own values.

    Args:
        tokens: number N of tokens.
        channels: channels C of each token, even and divisible by `num_heads`.
        projected: number P of tokens that keys and values are projected to.
        num_heads: number of attention heads.
        dropout: probability in [0, 1) that an entry of an attention map is dropped in training.
        projection: class of the module that projects keys and values, built with `tokens` and `projected`.
        merge: class of the module that merges the two branches, built with `channels`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Shaker et al., "UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation", IEEE TMI 2024,
        arXiv:2212.04497, section "Efficient Paired-Attention Block"; the order of its output is that of the code.
    """

    def __init__(
        self,
        *,
        tokens: int,
        channels: int,
        projected: int,
        num_heads: int = 4,
        dropout: float = 0.1,
        projection: Callable[..., nn.Module] = SharedProjection,
        merge: Callable[..., nn.Module] = ConcatBranches,
    ) -> None:
        super().__init__()
        for name, n in (("tokens", tokens), ("projected", projected), ("num_heads", num_heads)):
            if n < 1:
                raise ValueError(f"{name} is {n}; expected at least 1.")
        if channels < 2 or channels % 2 or channels % num_heads:
            raise ValueError(f"channels is {channels}; expected an even number divisible by num_heads {num_heads}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; expected a probability in [0, 1).")
        self.num_heads = num_heads
        self.qkvv = nn.Linear(channels, 4 * channels, bias=False)
        self.projection = projection(tokens=tokens, projected=projected)
        self.spatial_temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.channel_temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.dropout = nn.Dropout(dropout)
        self.merge = merge(channels=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens and over channels.

        Args:
            x: tokens `(B, N, C)`.

        Returns:
            Tokens `(B, N, C)`.
        """
        queries, keys, channel_values, spatial_values = self.qkvv(x).chunk(4, dim=-1)  # (B, N, C) each
        projected = [self._heads(y) for y in self.projection(keys, spatial_values)]  # (B, heads, P, C / heads)
        queries, keys = (self._heads(F.normalize(y, dim=1)) for y in (queries, keys))
        return self.merge(
            self._attend_to_tokens(queries, *projected),
            self._attend_to_channels(queries, keys, self._heads(channel_values)),
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)

    def _attend_to_tokens(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        dropout = self.dropout.p if self.dropout.training else 0.0
        keys = keys * self.spatial_temperature  # the same product as scaling the N x P logits
        x = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=1.0)  # (B, heads, N, d)
        # In (d, heads, N) order, read as (N, C): this mixes tokens and channels, and the authors' weights rely on it.
        return x.permute(0, 3, 1, 2).reshape(x.shape[0], x.shape[2], -1)  # (B, N, C)

    def _attend_to_channels(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        attention = (queries.transpose(-2, -1) @ keys * self.channel_temperature).softmax(dim=-1)  # (B, heads, d, d)
        x = values @ self.dropout(attention).transpose(-2, -1)  # (B, heads, N, d)
        return x.transpose(1, 2).flatten(2)  # (B, N, C)


class EPABlock(nn.Module):
    """Transformer block of UNETR++: paired attention on a map's positions, then residual convolutions.

    Args:
        tokens: number N of positions of the map; learned position embeddings and the projection tie the block to it.
        channels: channels C of the map, even and divisible by `num_heads`.
        projected: number P of tokens that keys and values are projected to.
        num_heads: number of attention heads.
        convolutions: number of residual convolution blocks after the attention: 1 for the authors' Synapse and tumour
            networks, 2 for ACDC and lung.
        dropout: probability in [0, 1) that an entry of an attention map, and a channel after the convolutions, is
            dropped in training.
        projection, merge: see `EPA`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Shaker et al., arXiv:2212.04497, section "Efficient Paired-Attention Block".
    """

    def __init__(
        self,
        *,
        tokens: int,
        channels: int,
        projected: int,
        num_heads: int = 4,
        convolutions: int = 1,
        dropout: float = 0.1,
        projection: Callable[..., nn.Module] = SharedProjection,
        merge: Callable[..., nn.Module] = ConcatBranches,
    ) -> None:
        super().__init__()
        if convolutions < 1:
            raise ValueError(f"convolutions is {convolutions}; expected at least 1.")
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, channels))
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.attention = EPA(
            tokens=tokens,
            channels=channels,
            projected=projected,
            num_heads=num_heads,
            dropout=dropout,
            projection=projection,
            merge=merge,
        )
        self.convolutions = nn.Sequential(
            *(
                UnetResBlock(3, channels, channels, kernel_size=3, stride=1, norm_name="batch")
                for _ in range(convolutions)
            )
        )
        self.out = nn.Sequential(nn.Dropout3d(dropout), nn.Conv3d(channels, channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map `(B, C, *spatial)` of N positions into one of the same shape."""
        tokens = self.pos_embed + x.flatten(2).transpose(1, 2)  # (B, N, C), in memory as the first summand
        tokens = tokens + self.gamma * self.attention(self.norm(tokens))
        x = tokens.transpose(1, 2).reshape(x.shape)  # (B, C, *spatial), channels last in memory: nothing is copied
        return x + self.out(self.convolutions(x))


def _over_tokens(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear map to the tokens of `(B, N, C)`: `(B, P, C)`."""
    return linear.weight @ x + linear.bias[:, None]
