"""The scores of all cases by one version of a network: columns in memory, one file on disk."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scripts.acquisition import SCORES, CaseScores, Distances, Pool
from scripts.files import replacing

logger = logging.getLogger(__name__)
COLUMNS = ("scores", "class_entropy", "class_volume", "features", "clinical")


class Table:
    """Scores by case, which never change once made; `extended` gives a longer table.

    Args:
        ids: names of the N scored cases.
        columns: `COLUMNS`, each ``(N, *)`` float32; ``scores`` has one column for each of `SCORES`.
    """

    def __init__(self, ids: Sequence[str] = (), columns: Mapping[str, np.ndarray] | None = None) -> None:
        self.ids = list(ids)
        self.columns = dict(columns or {name: np.empty((0, 0), np.float32) for name in COLUMNS})
        self._row = {name: row for row, name in enumerate(self.ids)}

    def __len__(self) -> int:
        """Number of scored cases."""
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        """Whether a case has been scored."""
        return name in self._row

    def extended(self, cases: Mapping[str, CaseScores]) -> Table:
        """This table with more cases; those that are in it already stay as they are."""
        new = {name: scored for name, scored in cases.items() if name not in self._row}
        if not new:
            return self
        rows = {"scores": [[scored.scores.get(key, np.nan) for key in SCORES] for scored in new.values()]}
        rows |= {name: [getattr(scored, name) for scored in new.values()] for name in COLUMNS[1:]}
        columns = {name: np.atleast_2d(np.asarray(values, np.float32)) for name, values in rows.items()}
        if len(self):
            columns = {name: np.concatenate([self.columns[name], values]) for name, values in columns.items()}
        return Table([*self.ids, *new], columns)

    def scores_of(self, name: str) -> dict[str, float]:
        """The scores of one case by name; empty when it has none."""
        row = self._row.get(name)
        if row is None:
            return {}
        values = zip(SCORES, self.columns["scores"][row].tolist(), strict=True)
        return {key: round(value, 6) for key, value in values if np.isfinite(value)}

    def pool(self, ids: Sequence[str]) -> Pool:
        """A pool of these cases, of which those that have not been scored are NaN; all are available."""
        rows = np.fromiter((self._row.get(name, -1) for name in ids), int, len(ids))
        found = {name: _taken(values, rows) for name, values in self.columns.items()}
        scores = found["scores"] if len(self) else np.full((len(ids), len(SCORES)), np.nan)
        return Pool(
            ids=list(ids),
            available=np.ones(len(ids), bool),
            labelled=np.zeros(len(ids), bool),
            taken=np.zeros(len(ids), bool),
            scores={name: scores[:, column] for column, name in enumerate(SCORES)},
            class_entropy=found["class_entropy"],
            class_volume=found["class_volume"],
            distances=Distances(found["features"], found["clinical"]),
        )

    def save(self, file: Path) -> None:
        """Write the table, whole or not at all."""
        with replacing(file) as part, part.open("wb") as stream:
            np.savez(stream, ids=np.array(self.ids, dtype=np.str_), **self.columns)

    @classmethod
    def load(cls, file: Path) -> Table:
        """Read a table; one that is not there or damaged is empty, and its cases are scored again."""
        if not file.is_file():
            return cls()
        try:
            with np.load(file, allow_pickle=False) as stored:
                ids, columns = stored["ids"].tolist(), {name: stored[name] for name in COLUMNS}
            if any(values.ndim != 2 or len(values) != len(ids) for values in columns.values()):
                raise ValueError("its columns have different lengths")
            return cls(ids, columns)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s); its cases are scored again", file, error)
            return cls()


def _taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a column, NaN where the row is -1."""
    taken = np.full((len(rows), values.shape[1]), np.nan, np.float32)
    taken[rows >= 0] = values[rows[rows >= 0]]
    return taken
