"""The Y: an image goes down an encoder, clinical variables join at the bottom, a decoder goes up to a mask."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers import Dropout
from torch import Tensor, nn

from .fusion import NoFusion
from .speed import accelerate


class YNet(nn.Module):
    """Segmentation network made of an encoder, a fusion of clinical variables and a decoder.

    On CPUs its layers choose faster ways to the same numbers (`scripts.networks.speed`).

    Args:
        encoder: maps an image `(B, in_channels, *spatial)` to a list of features, finest first; its attributes
            `channels` and `strides` say what it returns.
        decoder: maps those features to a list of logits, finest first.
        fusion: maps the coarsest feature map and the clinical vector to a map of the same shape; None: image only.
        deep_supervision: True returns the logits of every scale while training; the decoder must then have a head at
            every scale, and must not have them otherwise (a head outside the loss never gets a gradient).
        dropout: probability in [0, 1) that a channel of any feature is dropped before the decoder, in training mode.

    Raises:
        ValueError: if the parts do not fit each other, or `dropout` is out of range.

    References:
        Liu et al., "nnY-Net: Swin-NeXt with Cross-Attention for 3D Medical Images Segmentation", arXiv:2501.01406.

    Example:
        >>> import torch
        >>> from scripts.networks import MedNeXtDecoder, SwinEncoder, YNet
        >>> net = YNet(
        ...     encoder=SwinEncoder(spatial_dims=2, in_channels=1, feature_size=12, depths=[2], num_heads=[3]),
        ...     decoder=MedNeXtDecoder(spatial_dims=2, channels=[12, 12, 24], out_channels=2),
        ... )
        >>> net(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 2, 32, 32])
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        fusion: nn.Module | None = None,
        deep_supervision: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.fusion = NoFusion() if fusion is None else fusion
        self.decoder = decoder
        self.deep_supervision = deep_supervision
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; expected a probability in [0, 1).")
        self._check_parts()
        strides: Sequence[Sequence[int]] = encoder.strides  # type: ignore[assignment]
        self.dropout = Dropout[Dropout.DROPOUT, len(strides[0])](dropout) if dropout else nn.Identity()
        accelerate(self)

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor | list[Tensor]:
        """Segment an image.

        Args:
            x: image `(B, in_channels, *spatial)`.
            clinical: standardised variables `(B, F)` or `(1, F)`, NaN where unknown; None where nothing is known.

        Returns:
            Logits `(B, out_channels, *spatial)`; in training mode with deep supervision the list of the logits of
            every scale, finest first.
        """
        logits = self.decoder(self.encode(x, clinical))
        return logits if self.training and self.deep_supervision else logits[0]

    def encode(self, x: Tensor, clinical: Tensor | None = None) -> list[Tensor]:
        """Features that the decoder receives, finest first, the coarsest one fused with the clinical variables."""
        *skips, bottleneck = self.encoder(x)
        features = [*skips, self.fusion(bottleneck, clinical)]
        return [self.dropout(feature) for feature in features]

    def _check_parts(self) -> None:
        for name in ("channels", "strides"):
            returned = tuple(getattr(self.encoder, name))
            expected = tuple(getattr(self.decoder, name, returned))
            if expected != returned:
                raise ValueError(
                    f"decoder.{name} {expected} do not fit the encoder, which returns {returned} (finest first): write "
                    "these into the decoder."
                )
            if name == "channels" and getattr(self.fusion, name, returned[-1]) != returned[-1]:
                raise ValueError(
                    f"fusion.channels is {self.fusion.channels}, but the coarsest feature map of the encoder has "
                    f"{returned[-1]} channels: set fusion.channels to {returned[-1]}."
                )
        heads = getattr(self.decoder, "deep_supervision", self.deep_supervision)
        if heads != self.deep_supervision:
            raise ValueError(
                f"deep_supervision is {self.deep_supervision} in the network but {heads} in its decoder: use one "
                "value for both."
            )
