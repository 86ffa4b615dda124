"""Sliding-window inference for a network that also takes a patient's clinical vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer


class ClinicalSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's sliding window, repeating the one clinical row of a case for each of its windows.

    Args:
        *args: as `monai.inferers.SlidingWindowInferer`.
        **kwargs: as `monai.inferers.SlidingWindowInferer`.
    """

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Segment one image.

        Args:
            inputs: image ``(1, C, *spatial)``; several images are served when there is no clinical vector.
            network: called with windows ``(n, C, *roi_size)`` and ``clinical=(n, F)``.
            *args: passed on to the network.
            **kwargs: passed on to the network, ``clinical`` ``(1, F)`` among them.

        Returns:
            Logits ``(1, classes, *spatial)``.

        Raises:
            ValueError: a clinical tensor that is not one row for one image.
        """
        clinical = kwargs.pop("clinical", None)
        if clinical is None:
            return super().__call__(inputs, network, *args, **kwargs)
        if inputs.shape[0] != 1 or clinical.ndim != 2 or clinical.shape[0] != 1:
            raise ValueError(
                f"{inputs.shape[0]} images came with clinical values of shape {tuple(clinical.shape)}; windows of "
                "several patients would mix. Infer one image at a time with clinical values of shape (1, F)."
            )

        def with_clinical(windows: torch.Tensor, *more: Any, **others: Any) -> torch.Tensor:
            return network(windows, *more, clinical=clinical.expand(windows.shape[0], -1), **others)

        return super().__call__(inputs, with_clinical, *args, **kwargs)
