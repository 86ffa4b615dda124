"""Fill unknown clinical cells with a learned model, and measure how well that works by hiding known cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from .clinical import ClinicalTable
    from .clinical_schema import ClinicalSchema

__all__ = ["IMPUTERS", "GaussianImputer", "imputation_quality", "quality"]


class Imputer(Protocol):
    """What `imputation_quality` compares: scikit-learn's imputers fit."""

    def fit(self, x: np.ndarray) -> Any:
        """Learn from standardised features (patients, F) with NaN."""

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fill the NaN of (patients, F)."""


class GaussianImputer:
    """Fill each unknown feature with its expectation given the known ones, under one multivariate normal distribution.

    Mean and covariance are fitted by expectation-maximisation, so that incomplete rows count. At every step the
    correlations are shrunk towards 0 by an amount computed from the data, which is what makes 80 patients enough for 60
    features. One covariance serves every pattern of unknown cells, and is stored as plain numbers.

    Args:
        shrinkage: share by which correlations are shrunk, 0 to 1; None: computed from the data.
        max_iter: most steps of expectation-maximisation.
        tol: largest change of a filled value, in standard deviations, at which it stops.

    Raises:
        ValueError: for a shrinkage outside 0 to 1.

    References:
        Little and Rubin, Statistical Analysis with Missing Data, section 11.2 (EM for the normal distribution);
        Schaefer and Strimmer 2005, doi 10.2202/1544-6115.1175, table 1, target D (the shrinkage).
    """

    def __init__(self, *, shrinkage: float | None = None, max_iter: int = 25, tol: float = 1e-3) -> None:
        """Keep the settings; `fit` learns."""
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage {shrinkage}; expected a number from 0 to 1, or None")
        self.shrinkage, self.max_iter, self.tol = shrinkage, max_iter, tol
        self.mean = np.zeros(0)
        self.covariance = np.zeros((0, 0))

    def fit(self, x: np.ndarray) -> GaussianImputer:
        """Learn from standardised features, shape (patients, F), NaN where not known."""
        x = _checked(x, None)
        unknown = np.isnan(x)
        known = np.maximum((~unknown).sum(axis=0), 1)
        filled = np.where(unknown, np.nansum(x, axis=0) / known, x)
        amount = optimal_shrinkage(filled) if self.shrinkage is None else self.shrinkage
        spread = np.zeros((x.shape[1], x.shape[1]))  # covariance of what was filled, summed over patients
        for _ in range(self.max_iter):
            self.mean = filled.mean(axis=0)
            covariance = np.cov(filled, rowvar=False, bias=True).reshape(spread.shape) + spread / len(x)
            diagonal = np.diag(np.diag(covariance))
            self.covariance = (1 - amount) * covariance + amount * diagonal + 1e-9 * np.eye(len(diagonal))
            previous, (filled, spread) = filled, self._expect(x)
            if np.abs(filled - previous).max(initial=0) < self.tol:
                break
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fill the NaN of features, shape (patients, F)."""
        return self._expect(_checked(x, len(self.mean)))[0]

    def _expect(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fill (patients, F) and return it with the covariance of what was filled, summed over patients, (F, F)."""
        filled, spread = x.copy(), np.zeros_like(self.covariance)
        patterns, which = np.unique(np.isnan(x), axis=0, return_inverse=True)
        for index, unknown in enumerate(patterns):
            if unknown.any():
                rows = np.flatnonzero(which.ravel() == index)
                cross = self.covariance[np.ix_(~unknown, unknown)]
                weights = np.linalg.solve(self.covariance[np.ix_(~unknown, ~unknown)], cross)  # (known, unknown)
                filled[np.ix_(rows, unknown)] = (
                    self.mean[unknown] + (x[np.ix_(rows, ~unknown)] - self.mean[~unknown]) @ weights
                )
                rest = self.covariance[np.ix_(unknown, unknown)] - weights.T @ cross
                spread[np.ix_(unknown, unknown)] += len(rows) * rest
        return filled, spread

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted model as plain numbers for JSON."""
        return {"model": "gaussian", "mean": self.mean.tolist(), "covariance": self.covariance.tolist()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> GaussianImputer:
        """Make the imputer of `to_dict` again; ValueError if the numbers do not fit together."""
        imputer = cls()
        imputer.mean = np.array(stored.get("mean", []), dtype=float)
        imputer.covariance = np.array(stored.get("covariance", []), dtype=float)
        if stored.get("model") != "gaussian" or imputer.covariance.shape != (len(imputer.mean),) * 2:
            raise ValueError(
                f"stored imputer: model {stored.get('model')!r}, {imputer.mean.shape} means and {imputer.covariance.shape} "
                "covariances; expected gaussian, F and F x F; fit it again"
            )
        return imputer


def _checked(x: np.ndarray, n_features: int | None) -> np.ndarray:
    x = np.asarray(x, dtype=float)
    if x.ndim != 2 or not len(x) or x.shape[1] != (n_features or x.shape[1]):
        raise ValueError(f"features of shape {x.shape}; expected (patients, {n_features or 'features'}), not empty")
    return x


def optimal_shrinkage(x: np.ndarray) -> float:
    """Compute how far sample correlations should be shrunk towards 0 (Schaefer and Strimmer 2005, target D).

    Args:
        x: complete data, shape (patients, F).

    Returns:
        A share from 0 (trust the correlations: many patients) to 1 (ignore them: few).
    """
    n = len(x)
    if n < 3:
        return 1.0
    x = x - x.mean(axis=0)
    x = x / np.where(x.std(axis=0) > 1e-12, x.std(axis=0), 1.0)
    correlation = x.T @ x / n  # mean over patients of the products w = x_i x_j
    variance = ((x**2).T @ (x**2) - n * correlation**2) * n / (n - 1) ** 3  # of the correlation
    other = ~np.eye(len(correlation), dtype=bool)
    signal = ((n / (n - 1) * correlation[other]) ** 2).sum()
    return float(np.clip(variance[other].sum() / signal, 0, 1)) if signal > 0 else 1.0


def _iterative() -> Imputer:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  (scikit-learn only for this comparison)
    from sklearn.impute import IterativeImputer

    return IterativeImputer(keep_empty_features=True)


def _neighbours() -> Imputer:
    from sklearn.impute import KNNImputer

    return KNNImputer(n_neighbors=10, weights="distance", keep_empty_features=True)


IMPUTERS: dict[str, Callable[[], Imputer]] = {
    "gaussian": GaussianImputer,
    "iterative": _iterative,
    "neighbours": _neighbours,
}


def imputation_quality(
    table: ClinicalTable,
    *,
    models: Sequence[str] = ("gaussian",),
    fraction: float = 0.2,
    folds: int = 5,
    seeds: int = 3,
) -> pd.DataFrame:
    """Hide known cells of patients that the model was not fitted on, fill them, and compare.

    The patients are split into folds; the model is fitted on the others and fills hidden cells of the fold. Where a cell
    is hidden, the columns that tell its value (age and age group) are hidden with it.

    Args:
        table: the table, fitted or not.
        models: names among `IMPUTERS`.
        fraction: share of the known cells to hide, above 0 and below 1.
        folds: number of folds, 2 to the number of patients.
        seeds: number of repetitions with other folds and cells, at least 1.

    Returns:
        One row per column: kind, metric, number of hidden cells, the result of filling with median or mode, and of each
        model. `nrmse`, for numeric and ordinal columns: root mean square error over the standard deviation of the known
        cells, on the scale that the network sees (logarithm, ranks), smaller is better. `accuracy`, for binary and
        nominal ones, larger is better.

    Raises:
        ValueError: for a wrong setting or a table without cells to hide.
    """
    codes, schema = table.codes, table.schema
    if not 0 < fraction < 1 or not 2 <= folds <= len(codes) or seeds < 1:
        raise ValueError(
            f"fraction {fraction}, folds {folds}, seeds {seeds} for {len(codes)} patients; "
            "expected 0 < fraction < 1, 2 <= folds <= patients, seeds >= 1"
        )
    if unknown := set(models) - set(IMPUTERS):
        raise ValueError(f"models {sorted(unknown)}; expected some of {', '.join(IMPUTERS)}")
    hidden: list[tuple[int, float, list[float]]] = []  # column, truth, what median or mode and each model say
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        fold_of = rng.permutation(len(codes)) % folds
        for fold in range(folds):
            train, test = codes[fold_of != fold], codes[fold_of == fold]
            hide = (rng.random(test.shape) < fraction) & ~np.isnan(test)
            visible = test.copy()
            for i, relatives in enumerate(schema.relatives):
                visible[np.ix_(hide[:, i], relatives)] = np.nan
            guesses = [np.tile(middle(schema, train), (len(test), 1))]
            guesses += [fill(schema, train, visible, IMPUTERS[model]()) for model in models]
            hidden += [(i, test[r, i], [guess[r, i] for guess in guesses]) for r, i in np.argwhere(hide)]
    return _score(schema, codes, hidden, ["median/mode", *models])


def middle(schema: ClinicalSchema, codes: np.ndarray) -> np.ndarray:
    """Return the median (numeric, ordinal) or mode of each column, shape (columns,), NaN where nothing is known."""
    values = np.full(codes.shape[1], np.nan)
    for i, column in enumerate(schema.columns):
        known = codes[~np.isnan(codes[:, i]), i]
        if len(known):
            ordered = column.kind in ("numeric", "ordinal")
            values[i] = np.median(known) if ordered else np.bincount(known.astype(int)).argmax()
    return values


def fill(schema: ClinicalSchema, train: np.ndarray, codes: np.ndarray, imputer: Imputer) -> np.ndarray:
    """Fit an imputer on parsed cells (patients, columns) and fill others with valid values, NaN where never known."""
    mean, std, observed = schema.statistics(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn on convergence
        imputer.fit((np.stack([schema.encode(row) for row in train]) - mean) / std)
        filled = imputer.transform((np.stack([schema.encode(row) for row in codes]) - mean) / std) * std + mean
    return np.stack([schema.decode(row) for row in np.where(observed, filled, np.nan)])


def _score(
    schema: ClinicalSchema, codes: np.ndarray, hidden: Sequence[tuple[int, float, list[float]]], names: Sequence[str]
) -> pd.DataFrame:
    rows = []
    for i, column in enumerate(schema.columns):
        truth = np.array([t for j, t, _ in hidden if j == i])
        guesses = np.array([g for j, _, g in hidden if j == i]).reshape(len(truth), len(names))
        ordered = column.kind in ("numeric", "ordinal")
        row = {"column": column.name, "kind": column.kind, "metric": "nrmse" if ordered else "accuracy", "n": len(truth)}
        for k, name in enumerate(names):
            known = ~np.isnan(guesses[:, k]) if len(truth) else np.zeros(0, dtype=bool)
            if not known.any():
                row[name] = np.nan
            elif ordered:
                scale = np.array([column.encode(c)[0] for c in codes[:, i] if not np.isnan(c)]).std()
                error = [column.encode(g)[0] - column.encode(t)[0] for g, t in zip(guesses[known, k], truth[known])]
                row[name] = float(np.sqrt(np.mean(np.square(error))) / scale) if scale > 0 else np.nan
            else:
                row[name] = float(np.mean(guesses[known, k] == truth[known]))
        rows.append(row)
    return pd.DataFrame(rows)


def quality(
    table: str,
    schema: str | None = None,
    preset: str = "pre_treatment",
    columns: Sequence[str] | None = None,
    compare: bool = False,
    fraction: float = 0.2,
    folds: int = 5,
    seeds: int = 3,
) -> str:
    """Measure how well unknown cells of a clinical table are filled, by hiding known ones.

    Example: python -m scripts clinical quality --table clinical.xlsx --compare

    Args:
        table: path of the table, xlsx or csv.
        schema: path of the schema; the one of HCC-TACE-Seg if left out.
        preset: pre_treatment or paper.
        columns: names of columns to use instead of a preset.
        compare: also try scikit-learn's IterativeImputer and KNNImputer.
        fraction: share of the known cells to hide.
        folds: number of folds.
        seeds: number of repetitions.

    Returns:
        A printable table: per column the normalised RMSE (smaller is better) or accuracy (larger is better) of filling
        with the median or mode and with the learned model, and the mean of each over the columns.
    """
    from .clinical import HCC_TACE_SCHEMA, ClinicalSchema, ClinicalTable  # here: clinical.py imports this file

    chosen = ClinicalSchema.from_yaml(schema or HCC_TACE_SCHEMA, preset, columns)
    models = list(IMPUTERS) if compare else ["gaussian"]
    read = ClinicalTable(path=table, schema=chosen)
    result = imputation_quality(read, models=models, fraction=fraction, folds=folds, seeds=seeds)
    means = result.groupby("metric", as_index=False)[["median/mode", *models]].mean()
    text = result.to_string(index=False, float_format="%.3f", na_rep="-")
    return f"{text}\n\nMean over the columns\n{means.to_string(index=False, float_format='%.3f', na_rep='-')}"
