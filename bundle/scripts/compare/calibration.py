"""Are probabilities true? Confidence against accuracy of voxels, and the expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

BINS = 15


class Reliability:
    """Counts of voxels by how sure the network was of its class, in bins of equal width.

    Args:
        bins: number of bins of the confidence, over 0 to 1.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.voxels = np.zeros(bins)  # in each bin
        self.confidence = np.zeros(bins)  # sum over them
        self.right = np.zeros(bins)  # of them of the true class

    def add(self, probabilities: torch.Tensor, label: torch.Tensor) -> None:
        """Count voxels.

        Args:
            probabilities: ``(classes, *spatial)``, summing to 1.
            label: true class of each voxel, whole numbers ``(*spatial)``.

        Raises:
            ValueError: the shapes differ.
        """
        if probabilities.shape[1:] != label.shape:
            raise ValueError(
                f"probabilities have shape {tuple(probabilities.shape)}, the label {tuple(label.shape)}; expected "
                "(classes, *spatial) and (*spatial) on the same grid."
            )
        confidence, chosen = probabilities.flatten(1).max(0)
        right = (chosen == label.flatten()).double()
        n = len(self.voxels)
        place = (confidence * n).ceil().long().clamp(1, n) - 1  # bins are open below: (0, 1/n], …
        self.voxels += torch.bincount(place, minlength=n).double().numpy()
        self.confidence += torch.bincount(place, confidence.double(), minlength=n).numpy()
        self.right += torch.bincount(place, right, minlength=n).numpy()

    def summary(self) -> dict[str, Any]:
        """The counts, and ``ece``: mean gap of confidence and accuracy over the voxels, in [0, 1].

        References:
            Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.
        """
        total = self.voxels.sum()
        gap = np.abs(self.confidence - self.right).sum()
        return {
            "ece": float(gap / total) if total else None,
            "voxels": self.voxels.tolist(),
            "confidence": self.confidence.tolist(),
            "right": self.right.tolist(),
        }


def region(label: np.ndarray, margin: int = 5) -> tuple[slice, ...]:
    """The box around the true foreground, and some voxels more: far from it every network is sure and right.

    Args:
        label: true classes ``(*spatial)``, 0 the background.
        margin: voxels on each side.

    Returns:
        A slice an axis; the whole image where there is no foreground.

    References:
        Mehrtash et al., "Confidence calibration and predictive uncertainty estimation for deep medical image
        segmentation", IEEE TMI 2020 (calibration within a box around the structure).
    """
    box = []
    for axis in range(label.ndim):
        others = tuple(a for a in range(label.ndim) if a != axis)
        found = np.flatnonzero((label != 0).any(others))
        if not len(found):
            return (slice(None),) * label.ndim
        box.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin))
    return tuple(box)
