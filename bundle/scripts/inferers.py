"""Sliding-window inference for a network that also takes a patient's clinical vector, on volumes or on slices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer

Network = Callable[..., torch.Tensor]


class ClinicalSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's sliding window, repeating the one clinical row of a case for each of its windows.

    A window of two axes slides over every slice of a volume, across its last axis: a 2D network then gets batches of
    windows ``(n, C, H, W)``, of one slice or of several, and its logits are put together to a volume.

    Args:
        *args: as `monai.inferers.SlidingWindowInferer`.
        flip_axes: spatial axes over which the image is also seen mirrored, each alone and all together: ``2 ** n``
            passes, whose logits are turned back and averaged (test-time augmentation). Those that the network was
            trained with mirrored; none by default.
        **kwargs: as `monai.inferers.SlidingWindowInferer`.

    Example:
        >>> import torch
        >>> from scripts.inferers import ClinicalSlidingWindowInferer
        >>> inferer = ClinicalSlidingWindowInferer(roi_size=[8, 8], sw_batch_size=4)
        >>> inferer(torch.zeros(1, 1, 12, 10, 5), torch.nn.Conv2d(1, 3, 1)).shape
        torch.Size([1, 3, 12, 10, 5])
    """

    def __init__(self, *args: Any, flip_axes: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flip_axes = sorted({int(axis) for axis in flip_axes})

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any
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
            ValueError: a clinical tensor that is not one row for one image, or axes to mirror that are not there.
        """
        clinical = kwargs.pop("clinical", None)
        if clinical is not None:
            if inputs.shape[0] != 1 or clinical.ndim != 2 or clinical.shape[0] != 1:
                raise ValueError(
                    f"{inputs.shape[0]} images came with clinical values of shape {tuple(clinical.shape)}; windows of "
                    "several patients would mix. Infer one image at a time with clinical values of shape (1, F)."
                )
            network = _with_clinical(network, clinical)
        window = self
        if isinstance(self.roi_size, list | tuple) and len(self.roi_size) == 2 and inputs.ndim == 5:
            window, network = copy.copy(self), _on_slices(network)
            window.roi_size, window.roi_weight_map = (*self.roi_size, 1), None
        total: Any = None
        views = self._views(inputs.ndim - 2 - (window is not self))
        for axes in views:
            seen = inputs.flip(axes) if axes else inputs
            logits = SlidingWindowInferer.__call__(window, seen, network, *args, **kwargs)
            logits = logits.flip(axes) if axes else logits
            total = logits if total is None else total.add_(logits)
        return total.div_(len(views)) if len(views) > 1 else total

    def _views(self, spatial_dims: int) -> list[tuple[int, ...]]:
        """Axes of the tensor that are flipped in each pass; in the first one none."""
        wrong = [axis for axis in self.flip_axes if not 0 <= axis < spatial_dims]
        if wrong:
            raise ValueError(
                f"flip_axes is {self.flip_axes}, but the network sees {spatial_dims} axes of the image: expected "
                f"{list(range(spatial_dims))} or some of them (--tta_axes)."
            )
        dims = [axis + 2 for axis in self.flip_axes]  # behind batch and channel
        return [chosen for count in range(len(dims) + 1) for chosen in combinations(dims, count)]


def _with_clinical(network: Network, clinical: torch.Tensor) -> Network:
    """The network with one clinical row, repeated for each window."""

    def called(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return network(windows, *args, clinical=clinical.expand(windows.shape[0], -1), **kwargs)

    return called


def _on_slices(network: Network) -> Network:
    """The 2D network on windows that are one slice thick."""

    def called(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = network(windows.squeeze(-1), *args, **kwargs)  # (n, C, H, W, 1) -> (n, classes, H, W)
        return logits.unsqueeze(-1)  # (n, classes, H, W, 1)

    return called
