"""Uncertainty from class probabilities: maps to look at, and one number for a case or a class."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

SLAB = 16  # slices whose copies in another type exist at the same time


def entropy_map(probabilities: Tensor) -> Tensor:
    """Predictive entropy of every voxel, as a share of the largest possible.

    Args:
        probabilities: ``(classes, *spatial)``, any floating type, in [0, 1], summing to 1 over at least two classes.

    Returns:
        ``(*spatial)``, float32 in [0, 1]: 0 where the network is certain, 1 where all classes are equally likely.

    Raises:
        ValueError: fewer than two classes, or values outside [0, 1] (logits, for instance).

    Example:
        >>> import torch
        >>> entropy_map(torch.tensor([[1.0, 0.5], [0.0, 0.5]]))
        tensor([0., 1.])
    """
    if probabilities.ndim < 2 or len(probabilities) < 2:
        raise ValueError(
            f"probabilities have shape {tuple(probabilities.shape)}; expected (classes, *spatial) with at least 2 "
            "classes. Give background and foreground."
        )
    low, high = (float(value) for value in probabilities.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also refuses NaN
        raise ValueError(f"probabilities are {low:.3g} to {high:.3g}; expected 0 to 1. Apply softmax to logits first.")
    entropy = torch.empty(probabilities.shape[1:], dtype=torch.float32, device=probabilities.device)
    for start in range(0, entropy.shape[-1], SLAB):
        part = probabilities[..., start : start + SLAB].float().clamp(0, 1)
        entropy[..., start : start + SLAB] = torch.special.entr(part).sum(0)
    return entropy.div_(math.log(len(probabilities))).clamp_(max=1)


def mutual_information(samples: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Disagreement between several predictions of one image: entropy of their mean less the mean of their entropies.

    Over networks drawn by dropout this is BALD, the epistemic part of the uncertainty; over flips of the image it is
    the Jensen-Shannon divergence of the views. Samples are taken one by one, so only two maps are in memory.

    Args:
        samples: at least two tensors of probabilities, each ``(classes, *spatial)``.

    Returns:
        The map ``(*spatial)`` in [0, 1], in the unit of `entropy_map`, and the mean probabilities.

    Raises:
        ValueError: fewer than two samples.

    References:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning", arXiv:1112.5745.
        Gal, Islam and Ghahramani, "Deep Bayesian Active Learning with Image Data", ICML 2017.
    """
    total: Tensor | None = None
    entropies: Tensor | None = None
    count = 0
    for sample in samples:
        total = sample.float() if total is None else total + sample.float()
        entropies = entropy_map(sample) if entropies is None else entropies + entropy_map(sample)
        count += 1
    if total is None or entropies is None or count < 2:
        raise ValueError(f"{count} sample(s) came; disagreement needs at least 2. Raise the number of samples.")
    mean = total / count
    return (entropy_map(mean) - entropies / count).clamp(min=0), mean


def class_means(values: Tensor, probabilities: Tensor) -> Tensor:
    """Mean of a map over each foreground class, every voxel weighted by the probability of that class.

    The weights follow the network's own idea of where the class is, without a threshold, so that neither the size of
    the scan nor that of the organ matters, and a class the network merely suspects still has a value.

    Args:
        values: ``(*spatial)``.
        probabilities: ``(classes, *spatial)``, background first.

    Returns:
        ``(classes - 1,)``, float32; the mean over all voxels for a class that has no probability anywhere.
    """
    return _weighted_means(values, probabilities[1:])


def foreground_mean(values: Tensor, probabilities: Tensor) -> float:
    """Mean of a map over the foreground, every voxel weighted by the probability of being foreground.

    Args:
        values: ``(*spatial)``, for instance of `entropy_map`.
        probabilities: ``(classes, *spatial)``, background first.

    Returns:
        One number for the case, in the unit of the map.
    """
    return float(_weighted_means(values, (1 - probabilities[:1]).clamp(min=0))[0])


def _weighted_means(values: Tensor, weights: Tensor) -> Tensor:
    """Means ``(K,)`` of a map ``(*spatial)`` by weights ``(K, *spatial)``."""
    total = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    weighted = total.clone()
    for start in range(0, values.shape[-1], SLAB):
        part = weights[..., start : start + SLAB].double().flatten(1)  # (K, voxels)
        weighted += part @ values[..., start : start + SLAB].double().flatten()
        total += part.sum(1)
    means = weighted / total.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(total > 0, means, values.double().mean()).float()
