"""Runs a network on a case as often as its uncertainty needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from scripts.uncertainty import class_means, entropy_map, foreground_mean, mutual_information

from .pool import CaseScores


class CaseScorer:
    """Scores a preprocessed image: 1 pass for entropy and features, then passes with dropout, then one a flip.

    Args:
        network: a `YNet`, whose dropout is above 0 where the epistemic score is wanted (set ``network_def["dropout"]``,
            which leaves the weights as they are).
        inferer: called with image, network and, with clinical data, ``clinical``; MONAI's or the bundle's.
        samples: passes with dropout, at least 2; 0: no epistemic score.
        flip_axes: spatial axes that are mirrored, one pass each; none: no TTA score.

    Raises:
        ValueError: one sample, or samples of a network without dropout, which would all be equal.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        inferer: Callable[..., Tensor],
        samples: int = 5,
        flip_axes: Sequence[int] = (0, 1, 2),
    ) -> None:
        if samples == 1 or samples < 0:
            raise ValueError(f"samples is {samples}; expected 0, or at least 2 to compare.")
        if samples and not _dropouts(network):
            raise ValueError(
                "The network has no dropout, so its samples would all be equal. Set network_def['dropout'] (0.2, for "
                "instance), or samples to 0."
            )
        self.network, self.inferer, self.samples, self.flip_axes = network, inferer, samples, tuple(flip_axes)

    @torch.inference_mode()
    def __call__(self, image: Tensor, clinical: Tensor | None = None, *, seed: int = 0) -> CaseScores:
        """Score one case.

        Args:
            image: ``(1, C, *spatial)``, preprocessed.
            clinical: ``(1, F)``, NaN where unknown; None for a network without clinical data.
            seed: of the dropout, so that the scores of a case are the same every time.

        Returns:
            The scores; those that were switched off are missing.
        """
        with eval_mode(self.network):
            with _pooled(self.network) as windows:
                probabilities = self._probabilities(image, clinical)
            entropies = entropy_map(probabilities)
            scores = {"entropy": foreground_mean(entropies, probabilities)}
            if self.samples:
                scores["epistemic"] = foreground_mean(*mutual_information(self._drawn(image, clinical, seed)))
            if self.flip_axes:
                views = self._views(image, clinical, probabilities)
                scores["tta"] = foreground_mean(*mutual_information(views))
        return CaseScores(
            scores=scores,
            class_entropy=class_means(entropies, probabilities).cpu().numpy(),
            class_volume=probabilities[1:].flatten(1).mean(1).cpu().numpy(),
            features=torch.cat(windows).mean(0).cpu().numpy(),
            clinical=np.empty(0, np.float32) if clinical is None else clinical[0].cpu().numpy(),
        )

    def _probabilities(self, image: Tensor, clinical: Tensor | None) -> Tensor:
        """Class probabilities ``(classes, *spatial)``."""
        extra: dict[str, Any] = {} if clinical is None else {"clinical": clinical}
        logits = torch.as_tensor(self.inferer(image, self.network, **extra))
        return logits[0].float().softmax(0)

    def _drawn(self, image: Tensor, clinical: Tensor | None, seed: int) -> Iterator[Tensor]:
        with torch.random.fork_rng(), _dropping(self.network):
            torch.manual_seed(seed)
            for _ in range(self.samples):
                yield self._probabilities(image, clinical)

    def _views(self, image: Tensor, clinical: Tensor | None, seen: Tensor) -> Iterator[Tensor]:
        yield seen
        for axis in self.flip_axes:
            yield self._probabilities(image.flip(axis + 2), clinical).flip(axis + 1)


def _dropouts(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]


@contextmanager
def _dropping(network: nn.Module) -> Iterator[None]:
    """Dropout as in training, everything else as in inference."""
    layers = _dropouts(network)
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


@contextmanager
def _pooled(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the bottleneck of every window, averaged over space, before clinical variables join: ``(n, D)``."""
    windows: list[Tensor] = []
    handle = network.encoder.register_forward_hook(
        lambda _module, _inputs, features: windows.append(features[-1].float().flatten(2).mean(2))
    )
    try:
        yield windows
    finally:
        handle.remove()
