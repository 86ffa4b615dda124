"""Deals patients into folds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def assign_folds(patients: Iterable[str], *, folds: int, seed: int) -> dict[str, int]:
    """Deal patients into folds of equal size (within one), by a seeded shuffle of the sorted ids.

    Args:
        patients: patient ids; duplicates count once.
        folds: number of folds, at least 2.
        seed: seed of the shuffle.

    Returns:
        Patient id -> fold, 0 to ``folds - 1``.

    Raises:
        ValueError: fewer than 2 folds.
    """
    if int(folds) < 2:
        raise ValueError(f"folds is {folds}; expected at least 2, so that every patient can be validated on once")
    order = sorted(set(patients))
    np.random.default_rng(seed).shuffle(order)
    return {patient: i % int(folds) for i, patient in enumerate(order)}
