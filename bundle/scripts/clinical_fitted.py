"""What is learned from the clinical rows of the training patients: a scale per feature, and perhaps an imputer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clinical_schema import ClinicalSchema
from .imputers import ForestImputer, Imputer

__all__ = ["Fitted"]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What was learned from the training patients: mean and standard deviation per feature, and perhaps an imputer.

    Args:
        schema: the columns.
        mean: mean per feature, shape (F,).
        std: standard deviation per feature, shape (F,), above 0.
        observed: whether any training patient had the feature, shape (F,).
        imputer: fills standardised features (patients, F); None: unknown stays unknown.
        n_patients: number of patients fitted on.
    """

    schema: ClinicalSchema
    mean: np.ndarray
    std: np.ndarray
    observed: np.ndarray
    imputer: Imputer | None
    n_patients: int

    @classmethod
    def of(cls, schema: ClinicalSchema, codes: np.ndarray, imputer: Imputer | None = None) -> Fitted:
        """Learn from parsed cells (patients, columns); an imputer is fitted too."""
        mean, std, observed = schema.statistics(codes)
        if imputer is not None:
            imputer.fit((np.stack([schema.encode(row) for row in codes]) - mean) / std)
        return cls(schema=schema, mean=mean, std=std, observed=observed, imputer=imputer, n_patients=len(codes))

    def vectors(self, codes: np.ndarray) -> np.ndarray:
        """Standardise parsed cells (patients, columns) into (patients, F), NaN where not known."""
        return (np.stack([self.schema.encode(row) for row in codes]) - self.mean) / self.std

    def fill(self, codes: np.ndarray) -> np.ndarray:
        """Fill the NaN of parsed cells (patients, columns) with valid values.

        A row with nothing known stays so, and so does a column that no training patient had.
        """
        if self.imputer is None:
            return codes
        features = self.imputer.transform(self.vectors(codes)) * self.std + self.mean
        filled = np.stack([self.schema.decode(row) for row in np.where(self.observed, features, np.nan)])
        empty = np.isnan(codes).all(axis=1, keepdims=True)
        return np.where(np.isnan(codes) & ~empty, filled, codes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts for JSON."""
        return {
            "format": 1,
            "n_patients": self.n_patients,
            "features": self.schema.fingerprint,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "observed": self.observed.tolist(),
            "imputer": self.imputer.to_dict() if isinstance(self.imputer, ForestImputer) else None,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], schema: ClinicalSchema) -> Fitted:
        """Make it again from `to_dict`; ValueError if it was fitted for other features."""
        if stored.get("format") != 1:
            raise ValueError(f"format {stored.get('format')!r}; expected 1, as ClinicalTable.save writes")
        if stored["features"] != schema.fingerprint:
            there, here = ({feature[0] for feature in f} for f in (stored["features"], schema.fingerprint))
            detail = f"only there: {sorted(there - here)}; only in the schema: {sorted(here - there)}"
            same = "the same names, but another order, kind, category or log1p" if there == here else detail
            raise ValueError(f"fitted for other features than the schema's ({same}); fit again, or use its schema")
        mean, std, observed = (np.array(stored[name]) for name in ("mean", "std", "observed"))
        if not mean.shape == std.shape == observed.shape == (schema.n_features,) or not (std > 0).all():
            raise ValueError(f"it needs {schema.n_features} means, deviations above 0, and flags; fit again")
        imputer = None if stored["imputer"] is None else ForestImputer.from_dict(stored["imputer"])
        return cls(
            schema=schema, mean=mean, std=std, observed=observed, imputer=imputer, n_patients=stored["n_patients"]
        )
