"""Strategies: from what is known about the cases to those that should be annotated next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import rankdata

from scripts.clinical_schema import suggestion

from .pool import Pool

STRATIFIED = 0.66  # share of the picks that go to one foreground class each
LARGEST_BETA = 100.0
TINY = 1e-12

Strategy = Callable[..., list[int]]


def random(pool: Pool, n: int, rng: np.random.Generator, **_: float) -> list[int]:
    """Any case, each equally likely."""
    return rng.permutation(np.flatnonzero(pool.available))[:n].tolist()


def first(pool: Pool, n: int, rng: np.random.Generator, **_: float) -> list[int]:
    """The first case by name."""
    return sorted(np.flatnonzero(pool.available).tolist(), key=lambda case: pool.ids[case])[:n]


def foreground_random(pool: Pool, n: int, rng: np.random.Generator, position: int = 0, **_: float) -> list[int]:
    """Two thirds: the case of a random voxel of a random foreground class; else any case."""
    chosen: list[int] = []
    for left in _until_none_is_left(pool, chosen, n):
        column = _stratum(position + len(chosen), pool.class_volume.shape[1])
        weights = np.zeros(len(left)) if column is None else _neutral(pool.class_volume[:, column])[left]
        even = column is None or not weights.sum() > 0
        chosen.append(int(rng.choice(left, p=None if even else weights / weights.sum())))
    return chosen


def entropy(pool: Pool, n: int, rng: np.random.Generator, **_: float) -> list[int]:
    """The largest predictive entropy over the foreground."""
    return _most_uncertain(pool, n, rng, "entropy")


def epistemic(pool: Pool, n: int, rng: np.random.Generator, **_: float) -> list[int]:
    """The largest mutual information over networks drawn by dropout (BALD)."""
    return _most_uncertain(pool, n, rng, "epistemic")


def tta(pool: Pool, n: int, rng: np.random.Generator, **_: float) -> list[int]:
    """The largest disagreement between the image and its mirror images."""
    return _most_uncertain(pool, n, rng, "tta")


def clasp_pe(
    pool: Pool, n: int, rng: np.random.Generator, position: int = 0, progress: float = 0.0, **_: float
) -> list[int]:
    """Class-stratified entropy with power noise that fades (ClaSP PE)."""
    if pool.cold or not np.isfinite(pool.scores["entropy"]).any():
        return diversity(pool, n, rng)
    beta = LARGEST_BETA ** min(max(progress, 0.0), 1.0)
    chosen: list[int] = []
    for left in _until_none_is_left(pool, chosen, n):
        column = _stratum(position + len(chosen), pool.class_entropy.shape[1])
        values = pool.scores["entropy"] if column is None else pool.class_entropy[:, column]
        noised = np.log(np.maximum(_neutral(values), TINY)) + rng.gumbel(0, 1 / beta, len(values))
        chosen.append(int(left[np.argmax(noised[left])]))
    return chosen


def diversity(pool: Pool, n: int, rng: np.random.Generator, **_: float) -> list[int]:
    """The case farthest from all labelled ones, by image and clinical variables (k-centre)."""
    if not pool.distances.informed:
        return random(pool, n, rng)
    nearest = pool.nearest()
    chosen: list[int] = []
    for left in _until_none_is_left(pool, chosen, n):
        if chosen:
            nearest = np.minimum(nearest, pool.distances.between(chosen[-1:])[:, 0])
        far = nearest if np.isfinite(nearest).all() else -pool.distances.central()
        chosen.append(int(left[np.argmax(far[left])]))
    return chosen


def uncertain_and_diverse(pool: Pool, n: int, rng: np.random.Generator, **_: float) -> list[int]:
    """The best mean of two ranks: predictive entropy, and distance from all labelled cases."""
    uncertain = pool.scores["entropy"]
    if pool.cold or not np.isfinite(uncertain[pool.available]).any():
        return diversity(pool, n, rng)
    if not pool.distances.informed:
        return entropy(pool, n, rng)
    nearest = pool.nearest()
    chosen: list[int] = []
    for left in _until_none_is_left(pool, chosen, n):
        if chosen:
            nearest = np.minimum(nearest, pool.distances.between(chosen[-1:])[:, 0])
        chosen.append(int(left[np.argmax(_ranks(uncertain[left]) + _ranks(nearest[left]))]))
    return chosen


STRATEGIES: dict[str, Strategy] = {
    "uncertain_and_diverse": uncertain_and_diverse,
    "random": random,
    "first": first,
    "foreground_random": foreground_random,
    "entropy": entropy,
    "epistemic": epistemic,
    "tta": tta,
    "clasp_pe": clasp_pe,
    "diversity": diversity,
}
DEFAULT = "uncertain_and_diverse"


def select(
    strategy: str, pool: Pool, n: int = 1, *, rng: np.random.Generator, position: int = 0, progress: float = 0.0
) -> list[int]:
    """Choose the next cases to annotate.

    While there is no label, and while nothing has been scored, strategies that need a trained network use diversity,
    which needs none; where nothing tells the cases apart either, the choice is random. A case that has not been scored
    counts as one of median uncertainty.

    Args:
        strategy: one of `STRATEGIES`.
        pool: the cases.
        n: how many, >= 1; fewer come when fewer are available.
        rng: for the strategies that draw.
        position: how many cases were chosen before from the same scores; strategies that deal their picks to classes
            go on from there, so that asking n times for one case deals as asking once for n.
        progress: how far annotation is, in [0, 1]; the noise of ClaSP PE fades with it.

    Returns:
        Indices into the pool, best first, all available and distinct.

    Raises:
        ValueError: an unknown strategy, or n below 1.

    References:
        Lueth et al., "nnActive: A Framework for Evaluation of Active Learning in 3D Biomedical Segmentation", 2025.
        Lueth et al., "Finally Outshining the Random Baseline: A Simple and Effective Solution for Active Learning in
        3D Biomedical Imaging" (ClaSP PE), TMLR, arXiv:2601.13677: 66 % of the picks go to single classes by entropy
        times class probability, the logarithm of the score gets Gumbel noise of scale 1/beta, beta grows to 100.
        Kirsch et al., "Stochastic Batch Acquisition" (power noise), TMLR 2023, arXiv:2106.12059.
    """
    if strategy not in STRATEGIES:
        raise ValueError(
            f"There is no strategy {strategy!r}{suggestion(strategy, STRATEGIES)}. There are {', '.join(STRATEGIES)}."
        )
    if n < 1:
        raise ValueError(f"n is {n}; expected at least 1 case.")
    return STRATEGIES[strategy](pool, n, rng, position=position, progress=progress)


def _until_none_is_left(pool: Pool, chosen: list[int], n: int) -> Iterator[np.ndarray]:
    """For each of n picks, which the caller adds to `chosen`: the indices that may still be chosen."""
    left = pool.available.copy()
    while len(chosen) < n:
        left[chosen] = False
        if not left.any():
            return
        yield np.flatnonzero(left)


def _stratum(place: int, classes: int) -> int | None:
    """The class that pick number `place` goes to, or None for a pick over all classes."""
    before, after = round(place * STRATIFIED), round((place + 1) * STRATIFIED)
    return before % classes if after > before and classes else None


def _neutral(values: np.ndarray) -> np.ndarray:
    """Unscored cases get the median of the scored ones."""
    known = np.isfinite(values)
    return np.where(known, values, np.median(values[known]) if known.any() else 0.0)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks in (0, 1), the same for equal values; 0.5 where there is no value."""
    known = ~np.isnan(values)
    ranks = np.full(len(values), 0.5)
    if known.any():
        ranks[known] = (rankdata(values[known]) - 0.5) / known.sum()
    return ranks


def _most_uncertain(pool: Pool, n: int, rng: np.random.Generator, name: str) -> list[int]:
    if pool.cold or not np.isfinite(pool.scores[name]).any():
        return diversity(pool, n, rng)
    left = np.flatnonzero(pool.available)
    order = np.argsort(-_neutral(pool.scores[name])[left], kind="stable")
    return left[order][:n].tolist()
