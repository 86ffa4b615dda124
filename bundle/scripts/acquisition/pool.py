"""The cases one can choose from, and what is known about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .distances import Distances

SCORES = ("entropy", "epistemic", "tta")


@dataclass(frozen=True)
class CaseScores:
    """What a network says about one case, see `scripts.acquisition.CaseScorer`.

    Args:
        scores: uncertainty of the whole case by name, one of `SCORES`, in [0, 1].
        class_entropy: entropy over each foreground class, ``(classes - 1,)``.
        class_volume: share of the scan that each foreground class is expected to fill, ``(classes - 1,)``.
        features: pooled bottleneck features ``(D,)``.
        clinical: the patient's clinical vector ``(F,)``, NaN where unknown; empty without clinical data.
    """

    scores: dict[str, float]
    class_entropy: np.ndarray
    class_volume: np.ndarray
    features: np.ndarray
    clinical: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass
class Pool:
    """All cases, labelled or not, one row each; NaN where a case has not been scored yet.

    Args:
        ids: names of the N cases.
        available: ``(N,)`` bool, what may be chosen.
        labelled: ``(N,)`` bool. While nothing is, the network's uncertainty says little about what it would learn.
        taken: ``(N,)`` bool, being labelled by someone: new cases should differ from these too.
        scores: name to ``(N,)``.
        class_entropy: ``(N, K)``, K foreground classes.
        class_volume: ``(N, K)``.
        distances: between the cases.
    """

    ids: Sequence[str]
    available: np.ndarray
    labelled: np.ndarray
    taken: np.ndarray
    scores: dict[str, np.ndarray]
    class_entropy: np.ndarray
    class_volume: np.ndarray
    distances: Distances

    def __post_init__(self) -> None:
        """Check that every column has a row for every case."""
        size = len(self.ids)
        rows = {name: getattr(self, name) for name in ("available", "labelled", "taken", "class_entropy")}
        rows |= {"class_volume": self.class_volume, "distances": self.distances} | self.scores
        wrong = {name: len(values) for name, values in rows.items() if len(values) != size}
        if wrong:
            raise ValueError(f"The pool has {size} cases, but {wrong} rows came. Give one row a case.")

    @property
    def cold(self) -> bool:
        """Whether no case is labelled yet."""
        return not self.labelled.any()

    def nearest(self) -> np.ndarray:
        """Distance of every case ``(N,)`` to the nearest that is labelled or taken; infinite when none is."""
        nearest = self.distances.nearest(np.flatnonzero(self.labelled).tolist())
        taken = np.flatnonzero(self.taken).tolist()  # apart, as they come and go: the labelled ones are remembered
        return np.minimum(nearest, self.distances.between(taken).min(1)) if taken else nearest

    @classmethod
    def of(
        cls, cases: dict[str, CaseScores | None], *, labelled: Sequence[str] = (), taken: Sequence[str] = ()
    ) -> Pool:
        """Put scored cases together.

        Args:
            cases: name to what is known; None for a case that has not been scored.
            labelled: names of the labelled cases.
            taken: names of cases that someone is labelling.
        """
        ids = list(cases)
        known = [scored for scored in cases.values() if scored is not None]
        busy = {*labelled, *taken}
        done = set(labelled)
        return cls(
            ids=ids,
            available=np.array([name not in busy for name in ids], bool),
            labelled=np.array([name in done for name in ids], bool),
            taken=np.array([name in busy - done for name in ids], bool),
            scores={name: np.array([_score(case, name) for case in cases.values()], float) for name in SCORES},
            class_entropy=_rows(cases, known, "class_entropy"),
            class_volume=_rows(cases, known, "class_volume"),
            distances=Distances(_rows(cases, known, "features"), _rows(cases, known, "clinical")),
        )


def _score(case: CaseScores | None, name: str) -> float:
    return np.nan if case is None else case.scores.get(name, np.nan)


def _rows(cases: dict[str, CaseScores | None], known: list[CaseScores], name: str) -> np.ndarray:
    """One row a case, NaN where it has none."""
    width = max((len(getattr(case, name)) for case in known), default=0)
    rows = np.full((len(cases), width), np.nan, np.float32)
    for row, case in zip(rows, cases.values(), strict=True):
        if case is not None:
            row[:] = getattr(case, name)
    return rows
