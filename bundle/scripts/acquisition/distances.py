"""How different cases are: encoder features and clinical variables in one distance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.metrics.pairwise import nan_euclidean_distances

CHUNK = 256  # centres that are compared with every case at the same time


class Distances:
    """Distances between the cases of a pool.

    Each feature is standardised over the pool, and the image counts as much as the patient: the squared distance is
    the mean squared difference of the image features plus that of the clinical variables. Clinical variables that one
    of two patients lacks are left out; cases of which nothing is known are as far from all others as two random ones.

    Args:
        features: image features ``(N, D)``, a row of NaN where there are none (yet); D may be 0.
        clinical: clinical vectors ``(N, F)``, NaN where unknown; F may be 0.

    Raises:
        ValueError: another number of rows.

    References:
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018.
    """

    def __init__(self, features: np.ndarray, clinical: np.ndarray) -> None:
        if features.ndim != 2 or clinical.ndim != 2 or len(features) != len(clinical):
            raise ValueError(
                f"features have shape {features.shape} and clinical vectors {clinical.shape}; expected (N, D) and "
                "(N, F), one row a case in both."
            )
        self._image, self._clinical = _standardised(features), _standardised(clinical)
        self._known = ~np.isnan(self._image).any(1)
        self._image[~self._known] = 0
        self._norms = (self._image**2).sum(1)
        self._centres: frozenset[int] = frozenset()
        self._nearest = np.full(len(features), np.inf)

    def __len__(self) -> int:
        """Number of cases in the pool."""
        return len(self._image)

    @property
    def informed(self) -> bool:
        """Whether anything tells the cases apart."""
        return bool(self._known.any() and self._image.shape[1]) or bool((~np.isnan(self._clinical)).any())

    def between(self, cases: Sequence[int]) -> np.ndarray:
        """Distances from every case of the pool to some of them.

        Args:
            cases: M indices.

        Returns:
            ``(N, M)``.
        """
        cases = np.asarray(cases, dtype=int)
        squared = np.zeros((len(self), len(cases)))
        if not len(cases):
            return squared
        if self._image.shape[1]:
            inner = self._image @ self._image[cases].T
            image = (self._norms[:, None] + self._norms[cases] - 2 * inner).clip(min=0) / self._image.shape[1]
            both = self._known[:, None] & self._known[cases]
            squared += np.where(both, image, 2.0)  # the mean squared difference of two random cases
        if self._clinical.shape[1]:
            clinical = nan_euclidean_distances(self._clinical, self._clinical[cases], squared=True)
            squared += np.nan_to_num(clinical / self._clinical.shape[1], nan=2.0)
        return np.sqrt(squared)

    def nearest(self, centres: Sequence[int]) -> np.ndarray:
        """Distance from every case to the nearest of some centres.

        Repeated calls compare only with centres that the last call did not have, unless one was taken away.

        Args:
            centres: indices, for instance of the labelled cases.

        Returns:
            ``(N,)``; infinite when there is no centre.
        """
        wanted = frozenset(int(centre) for centre in centres)
        if not self._centres <= wanted:
            self._centres, self._nearest = frozenset(), np.full(len(self), np.inf)
        new = sorted(wanted - self._centres)
        nearest = self._nearest
        for start in range(0, len(new), CHUNK):
            nearest = np.minimum(nearest, self.between(new[start : start + CHUNK]).min(1))
        self._centres, self._nearest = wanted, nearest
        return nearest.copy()

    def central(self) -> np.ndarray:
        """Distance of every case from the middle of the pool ``(N,)``: the smallest is the most typical case."""
        squared = np.zeros(len(self))
        if self._image.shape[1]:
            squared += np.where(self._known, self._norms / self._image.shape[1], 1.0)
        if self._clinical.shape[1]:
            known = ~np.isnan(self._clinical)
            total = np.where(known, self._clinical, 0) ** 2
            squared += np.where(known.any(1), total.sum(1) / np.maximum(known.sum(1), 1), 1.0)
        return np.sqrt(squared)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1 over what is known; constant ones become 0."""
    values = np.asarray(values, dtype=np.float32)
    if not values.size:
        return values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns of which nothing is known stay NaN
        centred = values - np.nanmean(values, axis=0)
        deviation = np.nanstd(values, axis=0)
    return centred / np.where(deviation > 1e-6, deviation, 1.0)
