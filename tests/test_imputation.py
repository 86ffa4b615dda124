import json

import numpy as np
import pandas as pd
import pytest
import yaml
from scripts.clinical import HCC_TACE_SCHEMA, ClinicalSchema, ClinicalTable
from scripts.imputation import IMPUTERS, imputation_quality, quality
from scripts.imputers import ForestImputer, GaussianImputer, optimal_shrinkage
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.linear_model import LinearRegression
from support import REAL_DATA

WORKBOOK = REAL_DATA / "hcc_tace" / "HCC-TACE-Seg_clinical_data-V2.xlsx"


def correlated(n=60, features=5, seed=0, unknown=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) @ rng.normal(size=(2, features)) + 0.3 * rng.normal(size=(n, features))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    hidden = np.where(rng.random(x.shape) < unknown, np.nan, x)
    return x, hidden


# ---- normal distribution


def test_one_unknown_cell_is_filled_as_by_least_squares():
    """With complete training rows and no shrinkage, E[x_i | others] is scikit-learn's linear regression."""
    x, _ = correlated()
    new = correlated(n=5, seed=1)[0]
    new[np.arange(5), np.arange(5)] = np.nan
    reference = IterativeImputer(LinearRegression(), max_iter=1).fit(x).transform(new)
    np.testing.assert_allclose(GaussianImputer(shrinkage=0).fit(x).transform(new), reference, atol=1e-6)


def test_many_unknown_cells_are_filled_by_the_conditional_mean():
    x, _ = correlated()
    imputer = GaussianImputer(shrinkage=0.2).fit(x)
    sample = np.cov(x, rowvar=False, bias=True)
    covariance = 0.8 * sample + 0.2 * np.diag(np.diag(sample))
    np.testing.assert_allclose(imputer.covariance, covariance, atol=1e-8)
    new = np.array([[0.5, np.nan, -1.0, np.nan, np.nan]])
    known, unknown = [0, 2], [1, 3, 4]
    expected = covariance[np.ix_(unknown, known)] @ np.linalg.inv(covariance[np.ix_(known, known)]) @ [0.5, -1.0]
    np.testing.assert_allclose(imputer.transform(new)[0, unknown], expected, atol=1e-6)
    np.testing.assert_allclose(imputer.transform(np.full((1, 5), np.nan))[0], x.mean(axis=0), atol=1e-12)


def test_incomplete_rows_are_learned_from():
    x, hidden = correlated(n=400, unknown=0.3)
    where = np.isnan(hidden)
    filled = GaussianImputer().fit(hidden).transform(hidden)
    np.testing.assert_array_equal(filled[~where], x[~where])
    error = np.sqrt(np.mean((filled - x)[where] ** 2))
    reference = IterativeImputer(max_iter=30).fit_transform(hidden)
    assert error < 0.8  # the mean gives 1
    assert error < 1.05 * np.sqrt(np.mean((reference - x)[where] ** 2))


def test_shrinkage_falls_with_the_number_of_patients():
    amounts = [optimal_shrinkage(correlated(n=n)[0]) for n in (10, 100, 1000)]
    assert 1 > amounts[0] > amounts[1] > amounts[2] > 0
    assert optimal_shrinkage(np.random.default_rng(0).normal(size=(50, 40))) > 0.8
    assert optimal_shrinkage(np.ones((2, 3))) == 1
    assert optimal_shrinkage(np.ones((9, 3))) == 1


@pytest.mark.parametrize("make", [GaussianImputer, lambda: ForestImputer(groups=[0, 1, 2, 3], n_trees=3)])
def test_constant_and_never_known_features_are_harmless(make):
    x = correlated(features=4)[0]
    x[:, 0] = 0
    x[:, 1] = np.nan
    filled = make().fit(x).transform(np.array([[np.nan, np.nan, 1.0, np.nan], [5.0, 2.0, np.nan, 0.3]]))
    assert np.isfinite(filled).all()
    assert filled[0, :2] == pytest.approx([0, 0])


# ---- forests


def test_replayed_trees_predict_as_scikit_learn():
    x, _ = correlated(n=80, features=6)
    groups = [0, 1, 1, 2, 3, 4]
    imputer = ForestImputer(groups=groups, n_trees=10, seed=3).fit(x)
    new = correlated(n=30, features=6, seed=5)[0]
    for i, group in enumerate(groups):
        others = [j for j, g in enumerate(groups) if g != group]
        forest = RandomForestRegressor(10, min_samples_leaf=3, max_features=1 / 3, random_state=3)
        reference = forest.fit(x[:, others], x[:, i]).predict(new[:, others])
        np.testing.assert_allclose(imputer.predict(new, i), reference, atol=1e-6)


def test_transform_repeats_the_forests_from_the_normal_start():
    x, hidden = correlated(n=80, features=4, unknown=0.2)
    imputer = ForestImputer(groups=range(4), n_trees=5, rounds=2).fit(hidden)
    expected = imputer.start.transform(hidden)
    for _ in range(2):
        predicted = np.stack([imputer.predict(expected, i) for i in range(4)], axis=1)
        expected = np.where(np.isnan(hidden), predicted, hidden)
    np.testing.assert_allclose(imputer.transform(hidden), expected)


def test_forests_learn_what_is_not_straight():
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], size=(300, 2))
    x = np.column_stack([x, x[:, 0] * x[:, 1]])
    new = np.column_stack([x[:50, :2], np.full(50, np.nan)])
    wrong = {
        name: np.mean(np.sign(m.fit(x).transform(new)[:, 2]) != x[:50, 2])
        for name, m in {"forest": ForestImputer(groups=range(3)), "gaussian": GaussianImputer()}.items()
    }
    assert wrong["forest"] == 0
    assert wrong["gaussian"] > 0.2


def test_fitting_twice_gives_the_same():
    hidden = correlated(unknown=0.2)[1]
    first, second = (ForestImputer(groups=range(5), n_trees=4).fit(hidden).to_dict() for _ in range(2))
    assert first == second


def test_stored_imputers_are_exact_and_checked():
    hidden = correlated(unknown=0.2)[1]
    imputer = ForestImputer(groups=range(5), n_trees=4).fit(hidden)
    stored = json.loads(json.dumps(imputer.to_dict()))
    np.testing.assert_array_equal(ForestImputer.from_dict(stored).transform(hidden), imputer.transform(hidden))
    loop = json.loads(json.dumps(stored))
    loop["children"][0][0] = 0
    short = {**stored, "value": stored["value"][:-1]}
    outside = {**stored, "roots": [[10**6]] * 5}
    for broken in (loop, short, outside, {**stored, "model": "pickle"}, {**stored, "start": {"model": "gaussian"}}):
        with pytest.raises(ValueError, match="stored imputer"):
            ForestImputer.from_dict(broken)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="shrinkage 2"):
        GaussianImputer(shrinkage=2)
    with pytest.raises(ValueError, match="n_trees 0"):
        ForestImputer(groups=[0], n_trees=0)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        GaussianImputer().fit(np.zeros(3))
    with pytest.raises(ValueError, match=r"expected \(patients, 5\)"):
        GaussianImputer().fit(correlated()[0]).transform(np.zeros((2, 4)))


# ---- quality


@pytest.fixture
def files(tmp_path):
    """A table in which size follows age, group is a function of age, and luck follows nothing."""
    columns = [
        {"name": "age", "kind": "numeric", "range": [0, 120], "known": "before"},
        {"name": "group", "kind": "ordinal", "categories": ["young", "old"], "known": "before"},
        {"name": "size", "kind": "numeric", "range": [0, 500], "known": "before"},
        {"name": "drug", "kind": "nominal", "categories": ["a", "b", "c"], "known": "before"},
        {"name": "luck", "kind": "binary", "categories": [0, 1], "known": "before"},
    ]
    (tmp_path / "undeclared.yaml").write_text(yaml.safe_dump({"id": "id", "columns": columns}))
    columns[1]["derived_from"] = ["age"]
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump({"id": "id", "columns": columns}))
    rng = np.random.default_rng(0)
    age = rng.uniform(20, 90, 60)
    frame = pd.DataFrame({"id": [f"P{i}" for i in range(60)], "age": age.round(1)})
    frame["group"] = np.where(age > 50, "old", "young")
    frame["size"] = (2 * age + rng.normal(size=60)).round(2)
    frame["drug"] = np.where(age > 60, "b", "a")
    frame["luck"] = rng.integers(0, 2, 60)
    frame.loc[::7, "size"] = np.nan
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


def test_quality_is_good_where_columns_depend_and_not_where_they_do_not(files):
    schema = ClinicalSchema.from_yaml(files / "schema.yaml")
    table = ClinicalTable(path=files / "table.csv", schema=schema)
    result = imputation_quality(table, models=("gaussian", "iterative"), seeds=2, folds=3).set_index("column")
    assert result["metric"].to_dict() == {"age": "nrmse", "size": "nrmse", "drug": "accuracy", "luck": "accuracy"}
    assert (result["n"] > 10).all()
    assert result.loc["size", "gaussian"] < 0.7 < result.loc["size", "median/mode"]
    assert result.loc["drug", "gaussian"] > result.loc["drug", "median/mode"]
    assert abs(result.loc["luck", "gaussian"] - 0.5) < 0.25
    pd.testing.assert_frame_equal(
        result, imputation_quality(table, models=("gaussian", "iterative"), seeds=2, folds=3).set_index("column")
    )


@pytest.mark.parametrize(("file", "hidden"), [("schema.yaml", True), ("undeclared.yaml", False)])
def test_quality_hides_what_tells_the_hidden_cell(files, file, hidden):
    schema = ClinicalSchema.from_yaml(files / file, columns=["age", "group", "luck"])
    table = ClinicalTable(path=files / "table.csv", schema=schema)
    error = imputation_quality(table, models=("forest",), seeds=1, folds=2).set_index("column").loc["group", "forest"]
    assert (error > 0.8) == hidden  # from the age the group is certain, from luck it is not


def test_quality_of_a_column_without_cells(files):
    pd.read_csv(files / "table.csv").drop(columns="size").to_csv(files / "small.csv", index=False)
    schema = ClinicalSchema.from_yaml(files / "schema.yaml")
    with pytest.warns(UserWarning, match="lacks the columns size"):
        table = ClinicalTable(path=files / "small.csv", schema=schema)
    result = imputation_quality(table, models=("gaussian",), seeds=1, folds=2).set_index("column")
    assert result.loc["size", "n"] == 0
    assert np.isnan(result.loc["size", "gaussian"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fraction": 0}, "fraction 0"),
        ({"folds": 61}, "folds 61"),
        ({"seeds": 0}, "seeds 0"),
        ({"models": ("magic",)}, r"models \['magic'\]; expected some of forest"),
    ],
)
def test_wrong_settings(files, options, match):
    table = ClinicalTable(path=files / "table.csv", schema=ClinicalSchema.from_yaml(files / "schema.yaml"))
    with pytest.raises(ValueError, match=match):
        imputation_quality(table, **options)


def test_quality_command(files):
    options = {"schema": str(files / "schema.yaml"), "columns": ["age", "size"], "folds": 2, "seeds": 1}
    text = quality(str(files / "table.csv"), compare=True, **options)
    assert all(name in text for name in [*IMPUTERS, "median/mode", "age", "size", "Mean over the columns"])


@pytest.mark.skipif(not WORKBOOK.is_file(), reason=f"no {WORKBOOK}; set REAL_DATA_DIR")
def test_real_table_is_filled_better_than_by_median_and_mode():
    table = ClinicalTable(path=WORKBOOK, schema=ClinicalSchema.from_yaml(HCC_TACE_SCHEMA))
    result = imputation_quality(table, models=("forest",), seeds=1, folds=2)
    means = result.groupby("metric")[["median/mode", "forest"]].mean()
    assert means.loc["nrmse", "forest"] < 0.9 * means.loc["nrmse", "median/mode"]
    assert means.loc["accuracy", "forest"] > means.loc["accuracy", "median/mode"]


@pytest.mark.skipif(not WORKBOOK.is_file(), reason=f"no {WORKBOOK}; set REAL_DATA_DIR")
def test_real_unknown_cells_become_valid(tmp_path):
    schema = ClinicalSchema.from_yaml(HCC_TACE_SCHEMA)
    table = ClinicalTable(path=WORKBOOK, schema=schema, impute=True)
    table.fit(table.patient_ids[:80])
    vectors = np.stack([table.vector(p) for p in table.patient_ids])  # (105, 32)
    assert np.isfinite(vectors).all()
    drugs = vectors[:, [i for i, name in enumerate(schema.feature_names) if name.startswith("chemotherapy=")]]
    assert (drugs.sum(axis=1) == 1).all()
    table.save(tmp_path / "fitted.json")
    again = ClinicalTable(path=WORKBOOK, schema=schema, impute=True, fitted=tmp_path / "fitted.json")
    np.testing.assert_array_equal(np.stack([again.vector(p) for p in table.patient_ids]), vectors)
