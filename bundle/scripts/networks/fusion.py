"""How a patient's clinical variables meet the image at the bottleneck: none, add, concat or cross-attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn import functional as F

LIMIT = 10.0  # standardised values beyond this are outliers or typing errors: clipped
START = 0.1  # what a fusion computes from the map starts small: the map itself gets through


class ClinicalEncoder(nn.Module):
    """Embedding of a clinical vector in which any value, or the whole vector, may be unknown.

    This is the one place where NaN and a missing vector are handled. The first linear layer sees each value (0 where
    unknown) next to a flag that is 1 where it is unknown, so the flag's weights are the learned embedding of "unknown".
    A missing vector is a vector of unknown values. Infinite values count as unknown; finite ones are clipped to
    [-10, 10] standard deviations. No Python branch depends on a value, so the module compiles, traces, and gives every
    process of a distributed run the same graph whatever its patients lack. A traced network keeps the kind of call it
    was traced with: trace with a vector and pass NaN where nothing is known.

    Args:
        features: length F of the clinical vector.
        width: width of the embedding.
        hidden: width of the hidden layer.
        drop_variable: probability in [0, 1] with which each variable of each patient becomes unknown in training.
        drop_vector: probability in [0, 1] with which a patient's whole vector becomes unknown in training.
        groups: index of the variable that each feature belongs to (a nominal variable is several features, which are
            then dropped together); None: each feature is its own variable.

    Raises:
        ValueError: if an argument is out of range.
    """

    groups: Tensor

    def __init__(
        self,
        *,
        features: int,
        width: int,
        hidden: int = 64,
        drop_variable: float = 0.1,
        drop_vector: float = 0.1,
        groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("features", features), ("width", width), ("hidden", hidden)):
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1.")
        for name, p in (("drop_variable", drop_variable), ("drop_vector", drop_vector)):
            if not 0 <= p <= 1:
                raise ValueError(f"{name} is {p}; expected a probability in [0, 1].")
        variable = list(range(features) if groups is None else groups)
        if len(variable) != features or min(variable) < 0:
            raise ValueError(f"groups has {len(variable)} entries {variable}; expected {features} indices >= 0.")
        self.features = features
        self.variables = max(variable) + 1
        self.drop_variable = drop_variable
        self.drop_vector = drop_vector
        self.register_buffer("groups", torch.tensor(variable), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * features, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, clinical: Tensor | None, like: Tensor) -> Tensor:
        """Embed a clinical vector.

        Args:
            clinical: standardised variables `(B, F)`, or `(1, F)` for one patient in all B windows; NaN where unknown;
                None where nothing is known.
            like: the feature map `(B, ...)` that the embedding will meet: its batch, device and dtype count.

        Returns:
            Embedding `(B, width)`.

        Raises:
            ValueError: if the shape of the vector does not fit.
        """
        batch = like.shape[0]
        if clinical is None:
            clinical = torch.full((1, self.features), math.nan, device=like.device)
        elif not torch.jit.is_tracing():
            rows = clinical.shape[0]
            if clinical.ndim != 2 or clinical.shape[1] != self.features or (rows != 1 and rows != batch):
                raise ValueError(
                    f"clinical vector has shape {list(clinical.shape)}; expected [{batch}, {self.features}] (one row "
                    f"per image) or [1, {self.features}] (one row for all). The network was built for "
                    f"{self.features} clinical features: use the clinical schema it was trained with."
                )
        clinical = clinical.to(like.device).expand(batch, self.features)
        unknown = ~torch.isfinite(clinical)
        if self.training:
            unknown = unknown | self._dropped(batch, like.device)
        values = clinical.clamp(-LIMIT, LIMIT).masked_fill(unknown, 0.0)
        return self.layers(torch.cat([values.to(like.dtype), unknown.to(like.dtype)], dim=1))  # (B, width)

    def _dropped(self, batch: int, device: torch.device) -> Tensor:
        """Random mask `(B, F)` of what becomes unknown."""
        variables = torch.rand(batch, self.variables, device=device) < self.drop_variable
        vector = torch.rand(batch, 1, device=device) < self.drop_vector
        return variables[:, self.groups] | vector  # (B, F)


class NoFusion(nn.Module):
    """The image alone: whatever clinical vector comes is ignored."""

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Return the bottleneck `(B, C, *spatial)` as it is."""
        return x


class AddFusion(nn.Module):
    """Adds the embedded clinical vector to every position of the bottleneck.

    Args:
        channels: channels C of the bottleneck.
        clinical_features: length F of the clinical vector.
        spatial_dims: 2 or 3; here so that all fusions take the same arguments.
        hidden: see `ClinicalEncoder`, as are `drop_variable`, `drop_vector` and `groups`.
        drop_variable: probability of dropping a variable in training.
        drop_vector: probability of dropping the whole vector in training.
        groups: variable of each feature.

    References:
        Liu et al., arXiv:2501.01406, table of fusion methods ("Add").
    """

    def __init__(
        self,
        *,
        channels: int,
        clinical_features: int,
        spatial_dims: int = 3,
        hidden: int = 64,
        drop_variable: float = 0.1,
        drop_vector: float = 0.1,
        groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.clinical = ClinicalEncoder(
            features=clinical_features,
            width=channels,
            hidden=hidden,
            drop_variable=drop_variable,
            drop_vector=drop_vector,
            groups=groups,
        )

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Fuse the bottleneck `(B, C, *spatial)` with clinical variables `(B, F)`; same shape as `x`."""
        embedding = self.clinical(clinical, x)  # (B, C)
        return x + embedding.reshape(embedding.shape + (1,) * (x.ndim - 2))  # (B, C, 1, ...)


class ConcatFusion(nn.Module):
    """Concatenates the embedded clinical vector to every position; a 1x1 convolution goes back to the width.

    Args:
        channels: channels C of the bottleneck.
        clinical_features: length F of the clinical vector.
        spatial_dims: 2 or 3.
        width: width of the clinical embedding; None takes C.
        hidden: see `ClinicalEncoder`, as are `drop_variable`, `drop_vector` and `groups`.
        drop_variable: probability of dropping a variable in training.
        drop_vector: probability of dropping the whole vector in training.
        groups: variable of each feature.

    References:
        Liu et al., arXiv:2501.01406, table of fusion methods ("Concat"). The convolution starts close to the identity.
    """

    def __init__(
        self,
        *,
        channels: int,
        clinical_features: int,
        spatial_dims: int = 3,
        width: int | None = None,
        hidden: int = 64,
        drop_variable: float = 0.1,
        drop_vector: float = 0.1,
        groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        width = channels if width is None else width
        self.clinical = ClinicalEncoder(
            features=clinical_features,
            width=width,
            hidden=hidden,
            drop_variable=drop_variable,
            drop_vector=drop_vector,
            groups=groups,
        )
        self.conv = Conv[Conv.CONV, spatial_dims](channels + width, channels, kernel_size=1)
        with torch.no_grad():
            self.conv.weight[:, :channels].mul_(START).flatten(1).diagonal().add_(1.0)
            self.conv.bias.zero_()

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Fuse the bottleneck `(B, C, *spatial)` with clinical variables `(B, F)`; same shape as `x`."""
        embedding = self.clinical(clinical, x)  # (B, width)
        embedding = embedding.reshape(embedding.shape + (1,) * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return self.conv(torch.cat([x, embedding], dim=1))  # (B, C + width, *spatial) -> (B, C, *spatial)


class CrossAttentionFusion(nn.Module):
    """Clinical variables ask (query), the coarsest feature map answers (key and value).

    At location i the query is the embedded clinical vector e plus an encoding of the location; keys are the normalised
    feature map plus the same encoding; the result is `x_i + e + scale * project(attention_i)`.

    Where this departs from the paper, which publishes no code: there the query is a fixed number of tokens made by
    fully connected layers, and the attention's result replaces the bottleneck. Here one embedding meets a positional
    encoding of normalised coordinates, so that any patch size works; the feature map stays as a residual, so that the
    image is never lost; so does the embedding, unscaled and without the encoding of the location, so that clinical
    variables reach the decoder directly from the first step; keys are normalised and know their position; a learned
    scale of the attention starts at 0.1.

    Args:
        channels: channels C of the bottleneck.
        clinical_features: length F of the clinical vector.
        spatial_dims: 2 or 3.
        num_heads: attention heads; must divide C.
        frequencies: sines and cosines per axis of the positional encoding: wavelengths 4, 2, 1, ... of half the map.
        hidden: see `ClinicalEncoder`, as are `drop_variable`, `drop_vector` and `groups`.
        drop_variable: probability of dropping a variable in training.
        drop_vector: probability of dropping the whole vector in training.
        groups: variable of each feature.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Liu et al., "nnY-Net: Swin-NeXt with Cross-Attention for 3D Medical Images Segmentation", arXiv:2501.01406,
        cross-attention at the bottleneck; Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.
    """

    frequencies: Tensor

    def __init__(
        self,
        *,
        channels: int,
        clinical_features: int,
        spatial_dims: int = 3,
        num_heads: int = 8,
        frequencies: int = 4,
        hidden: int = 64,
        drop_variable: float = 0.1,
        drop_vector: float = 0.1,
        groups: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide the {channels} channels of the bottleneck.")
        if frequencies < 1:
            raise ValueError(f"frequencies is {frequencies}; expected at least 1.")
        self.channels = channels
        self.num_heads = num_heads
        self.clinical = ClinicalEncoder(
            features=clinical_features,
            width=channels,
            hidden=hidden,
            drop_variable=drop_variable,
            drop_vector=drop_vector,
            groups=groups,
        )
        self.register_buffer("frequencies", math.pi / 2 * 2.0 ** torch.arange(frequencies), persistent=False)
        self.position = nn.Linear(2 * frequencies * spatial_dims, channels)
        self.norm_query = nn.LayerNorm(channels)
        self.norm_map = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)  # a bias of the keys shifts all scores alike: no effect
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), START))

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Fuse the bottleneck `(B, C, *spatial)` with clinical variables `(B, F)`; same shape as `x`."""
        position = self._position(x)  # (N, C)
        tokens = self.norm_map(x.flatten(2).transpose(1, 2))  # (B, N, C)
        embedding = self.clinical(clinical, x).unsqueeze(1)  # (B, 1, C)
        query = self._heads(self.query(self.norm_query(embedding + position)))
        key = self._heads(self.key(tokens + position))
        value = self._heads(self.value(tokens))
        answer = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, C / heads)
        answer = answer.transpose(1, 2).flatten(2)  # (B, N, C)
        update = embedding + self.scale * self.project(answer)
        return x + update.transpose(1, 2).reshape(x.shape)  # (B, C, *spatial)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)

    def _position(self, x: Tensor) -> Tensor:
        """Encoding `(N, C)` of the N locations, from their coordinates in [-1, 1] along each axis of the map."""
        axes = [(2 * torch.arange(n, device=x.device) + 1) / n - 1 for n in x.shape[2:]]  # centres of the positions
        grid = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, -2)  # (N, axes)
        angles = (grid.unsqueeze(-1) * self.frequencies).flatten(1)  # (N, axes * frequencies)
        return self.position(torch.cat([angles.sin(), angles.cos()], dim=1).to(self.position.weight.dtype))
