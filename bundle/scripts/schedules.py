"""Learning rates over the epochs that neither torch nor MONAI has."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class ExponentialWarmup(LambdaLR):
    """Exponential rise to the optimiser's learning rate, then polynomial decay towards 0.

    In epoch e (from 0) of n with a warm-up of w epochs, the factor is ``exp(10 (e / w - 1))`` up to epoch w, where it
    is 1, and ``(1 - e / n) ** power`` from there on.

    Args:
        optimizer: whose learning rate is the highest one.
        warmup_epochs: epochs of the rise, >= 0; 0 starts at the highest.
        max_epochs: epochs in all, > `warmup_epochs`.
        power: of the decay, > 0; 1 is a straight line.

    Raises:
        ValueError: a number is out of range.

    References:
        Gao et al., "UTNet", MICCAI 2021: ``exp_lr_scheduler_with_warmup`` of the authors' code.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.05)
        >>> ExponentialWarmup(optimizer, warmup_epochs=5, max_epochs=150).factor(5)
        1.0
    """

    def __init__(self, optimizer: Optimizer, *, warmup_epochs: int, max_epochs: int, power: float = 0.9) -> None:
        if not 0 <= warmup_epochs < max_epochs:
            raise ValueError(f"warmup_epochs is {warmup_epochs}, expected 0 or more and less than {max_epochs} epochs.")
        if not power > 0:
            raise ValueError(f"power is {power}, expected a positive number.")
        self.warmup_epochs, self.max_epochs, self.power = warmup_epochs, max_epochs, power
        super().__init__(optimizer, self.factor)

    def factor(self, epoch: int) -> float:
        """Share of the highest learning rate in an epoch, from 0."""
        if epoch < self.warmup_epochs:
            return math.exp(10 * (epoch / self.warmup_epochs - 1))
        if epoch == self.warmup_epochs:
            return 1.0
        return max(0.0, 1 - epoch / self.max_epochs) ** self.power
