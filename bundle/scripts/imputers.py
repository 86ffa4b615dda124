"""Models that fill unknown features: fitted once, stored as plain numbers, replayed without scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

__all__ = ["ForestImputer", "GaussianImputer", "Imputer", "optimal_shrinkage"]


class Imputer(Protocol):
    """What fills unknown features; scikit-learn's imputers are such models too."""

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
                f"stored imputer: model {stored.get('model')!r}, means {imputer.mean.shape}, covariance "
                f"{imputer.covariance.shape}; expected gaussian, (F,) and (F, F); fit it again"
            )
        return imputer


class ForestImputer:
    """Fill unknown features by a `GaussianImputer`, then let a random forest per feature correct each of them.

    A normal distribution sees only straight relations; staging rules such as BCLC's are not straight. The forest of a
    feature predicts it from the other columns' features; predictions are repeated, each round on the last one's values.
    scikit-learn grows the trees; they are kept, stored and evaluated as flat arrays.

    Args:
        groups: for each feature the index of its column; a forest never sees features of its own column.
        n_trees: trees per forest, at least 1.
        min_leaf: fewest patients in a leaf, at least 1.
        rounds: how often the predictions are repeated, at least 1.
        seed: seed of the trees.

    Raises:
        ValueError: for a number below 1.

    References:
        Stekhoven and Buehlmann 2012, doi 10.1093/bioinformatics/btr597 (missForest). It departs from them in the start
        (a normal distribution, not the mean) and in growing each forest once, on those first values.
    """

    def __init__(
        self, *, groups: Sequence[int], n_trees: int = 60, min_leaf: int = 3, rounds: int = 2, seed: int = 0
    ) -> None:
        """Keep the settings; `fit` learns."""
        if min(n_trees, min_leaf, rounds) < 1:
            raise ValueError(f"n_trees {n_trees}, min_leaf {min_leaf}, rounds {rounds}; expected at least 1 each")
        self.groups = np.asarray(groups, dtype=int)
        self.n_trees, self.min_leaf, self.rounds, self.seed = n_trees, min_leaf, rounds, seed
        self.start = GaussianImputer()
        self.roots: list[list[int]] = []  # per feature: the first node of each tree
        self.feature = np.zeros(0, dtype=int)  # per node: the feature to compare, -1 in a leaf
        self.value = np.zeros(0)  # per node: the threshold, or the prediction of a leaf
        self.children = np.zeros((2, 0), dtype=int)  # per node: where to go if feature <= threshold, if not

    def fit(self, x: np.ndarray) -> ForestImputer:
        """Learn from standardised features, shape (patients, F), NaN where not known."""
        from sklearn.ensemble import RandomForestRegressor  # only fitting needs it

        x = _checked(x, len(self.groups))
        filled = self.start.fit(x).transform(x)
        self.roots = []
        nodes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        size = 0
        for i, group in enumerate(self.groups):
            known, others = ~np.isnan(x[:, i]), np.flatnonzero(self.groups != group)
            self.roots.append([])
            if len(others) and len(np.unique(x[known, i])) > 1:
                forest = RandomForestRegressor(
                    self.n_trees, min_samples_leaf=self.min_leaf, max_features=1 / 3, random_state=self.seed
                ).fit(filled[np.ix_(known, others)], x[known, i])
                for tree in (member.tree_ for member in forest.estimators_):
                    leaf = tree.children_left < 0
                    feature = np.where(leaf, -1, others[np.where(leaf, 0, tree.feature)])
                    value = np.where(leaf, tree.value[:, 0, 0], tree.threshold)
                    children = np.stack([tree.children_left, tree.children_right]) + size
                    nodes.append((feature, value, np.where(leaf, -1, children)))
                    self.roots[-1].append(size)
                    size += tree.node_count
        if nodes:
            self.feature, self.value = (np.concatenate([n[k] for n in nodes]) for k in (0, 1))
            self.children = np.concatenate([n[2] for n in nodes], axis=1)
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fill the NaN of features, shape (patients, F)."""
        x = _checked(x, len(self.groups))
        unknown, filled = np.isnan(x), self.start.transform(x)
        for _ in range(self.rounds):
            previous = filled.copy()
            for i in np.flatnonzero(unknown.any(axis=0)):
                if self.roots[i]:
                    filled[unknown[:, i], i] = self.predict(previous[unknown[:, i]], i)
        return filled

    def predict(self, x: np.ndarray, feature: int) -> np.ndarray:
        """Predict one feature of (patients, F) from the others: the mean over its trees, shape (patients,)."""
        x = x.astype(np.float32)  # as scikit-learn compares
        node = np.tile(self.roots[feature], (len(x), 1))  # (patients, trees)
        while (inner := self.feature[node] >= 0).any():
            at = node[inner]
            right = x[np.nonzero(inner)[0], self.feature[at]] > self.value[at]
            node[inner] = self.children[right.astype(int), at]
        return self.value[node].mean(axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted model as plain numbers for JSON."""
        names = ("groups", "feature", "value", "children")
        arrays = {name: getattr(self, name).tolist() for name in names}
        return {"model": "forest", "rounds": self.rounds, "start": self.start.to_dict(), "roots": self.roots, **arrays}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ForestImputer:
        """Make the imputer of `to_dict` again; ValueError if the numbers do not fit together."""
        if stored.get("model") != "forest":
            raise ValueError(f"stored imputer: model {stored.get('model')!r}; expected forest; fit it again")
        imputer = cls(groups=stored["groups"], rounds=stored["rounds"])
        imputer.start = GaussianImputer.from_dict(stored["start"])
        imputer.roots = [list(map(int, roots)) for roots in stored["roots"]]
        imputer.feature = np.array(stored["feature"], dtype=int)
        imputer.value = np.array(stored["value"], dtype=float)
        imputer.children = np.array(stored["children"], dtype=int).reshape(2, -1)
        n, f = len(imputer.feature), len(imputer.groups)
        inner = imputer.feature >= 0
        ahead = imputer.children[:, inner] > np.flatnonzero(inner)  # a child after its parent: no tree can loop
        if (
            imputer.value.shape != (n,)
            or imputer.children.shape != (2, n)
            or not len(imputer.start.mean) == len(imputer.roots) == f
            or not (ahead.all() and (imputer.children < n).all() and (imputer.feature < f).all())
            or any(not 0 <= root < n for roots in imputer.roots for root in roots)
        ):
            raise ValueError(f"stored imputer: {n} nodes and {f} features do not fit together; fit it again")
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
