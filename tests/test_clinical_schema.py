"""What columns mean: declarations, and the cells that they accept."""

import datetime

import numpy as np
import pytest
import yaml
from clinical_support import COLUMNS, write_schema
from scripts.clinical import ClinicalColumn, ClinicalSchema


@pytest.fixture
def schema_file(tmp_path):
    return write_schema(tmp_path)


@pytest.fixture
def schema(schema_file):
    return ClinicalSchema.from_yaml(schema_file)


def test_preset_pre_treatment_has_no_derived_and_no_later_column(schema):
    assert [c.name for c in schema.columns] == ["age", "Sex", "Tr_Size", "Stage", "Drug"]
    assert schema.feature_names == ("age", "Sex", "Tr_Size", "Stage", "Drug=a", "Drug=b", "Drug=c")
    assert schema.n_features == 7
    assert schema.groups == [0, 1, 2, 3, 4, 4, 4]


def test_preset_paper_has_everything_and_names_the_leak(schema_file):
    with pytest.warns(UserWarning, match=r"known only after treatment leak: OS \(the outcome\)"):
        paper = ClinicalSchema.from_yaml(schema_file, preset="paper")
    assert [c.name for c in paper.columns] == [c["name"] for c in COLUMNS]
    assert paper.relatives[:2] == [[0, 1], [0, 1]]


def test_own_columns_keep_their_order_and_warn_of_a_leak(schema_file):
    own = ClinicalSchema.from_yaml(schema_file, columns=["Stage", "age"])
    assert own.feature_names == ("Stage", "age")
    assert ClinicalSchema.from_yaml(schema_file, columns="Stage, age") == own
    with pytest.warns(UserWarning, match="OS"):
        ClinicalSchema.from_yaml(schema_file, columns=["OS"])


def test_unknown_names(schema_file):
    with pytest.raises(ValueError, match=r"'tr size'.*did you mean 'Tr_Size'"):
        ClinicalSchema.from_yaml(schema_file, columns=["tr size"])
    with pytest.raises(ValueError, match="no columns chosen"):
        ClinicalSchema.from_yaml(schema_file, columns=[])
    with pytest.raises(ValueError, match="preset 'all'; expected one of pre_treatment, paper"):
        ClinicalSchema.from_yaml(schema_file, preset="all")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "text"}, "kind 'text'"),
        ({"known": "during"}, "known 'during'"),
        ({"known": "after"}, "say in `leak`"),
        ({"range": []}, "give range"),
        ({"range": [5, 5]}, "give range"),
        ({"categories": ["a", "b"]}, "no categories"),
        ({"kind": "binary", "range": [], "unit": "", "categories": ["a", "b", "c"]}, "3 categories"),
        ({"kind": "ordinal", "range": [], "unit": "", "categories": ["a"]}, "1 categories"),
        ({"kind": "ordinal", "range": [], "unit": "", "categories": ["a b", "A_B"]}, "differ only in case"),
        ({"kind": "ordinal", "range": [], "unit": "", "categories": ["a", "b"], "log1p": True}, "belong to numeric"),
        ({"kind": "ordinal", "range": [], "unit": "", "categories": ["a", "b"], "aliases": {"x": "c"}}, "alias 'x'"),
        ({"colour": "red"}, "colour"),
        ({"derived_from": ["birth"]}, r"derived_from names \['birth'\]"),
    ],
)
def test_wrong_declarations(tmp_path, change, match):
    path = tmp_path / "schema.yaml"
    path.write_text(yaml.safe_dump({"columns": [{**COLUMNS[0], **change}]}))
    with pytest.raises(ValueError, match=match):
        ClinicalSchema.from_yaml(path)


def test_wrong_schema_files(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text("a: 1")
    with pytest.raises(ValueError, match="no clinical schema"):
        ClinicalSchema.from_yaml(path)
    path.write_text(yaml.safe_dump({"columns": [COLUMNS[0], COLUMNS[0]]}))
    with pytest.raises(ValueError, match="'age' twice"):
        ClinicalSchema.from_yaml(path)


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("Stage", "Stage_0-2", 0),
        ("Stage", " STAGE_ 0–2 ", 0),
        ("Stage", "stage IIIA", 1),
        ("Sex", 1.0, 0),
        ("Sex", "2.0", 1),
        ("Sex", "Female", 1),
        ("Tr_Size", "4.6 cm", 4.6),
        ("Tr_Size", "4.6", 4.6),
        ("age", np.int64(7), 7),
        ("Drug", "unknown", np.nan),
        ("Drug", "No Drug", np.nan),
        ("Drug", None, np.nan),
        ("age", float("nan"), np.nan),
        ("age", "  ", np.nan),
    ],
)
def test_accepted_cells(schema, column, value, code):
    parsed = {c.name: c for c in schema.columns}[column].parse(value)
    np.testing.assert_equal(parsed, float(code))


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("Tr_Size", 700, r"700 cm is out of range; expected a number from 0.1 to 35 cm; check the unit"),
        ("Tr_Size", "46 mm", r"'46 mm' is in 'mm'; this column is in cm"),
        ("Tr_Size", "4,6", "not a number.*point as decimal mark"),
        ("Tr_Size", float("inf"), "inf cm is out of range"),
        ("age", ">70", "'>70' is not a number"),
        ("age", True, "True is not a number"),
        ("Sex", 3, "3 is no category of this column; expected one of '1', '2'"),
        ("Sex", -1, "-1 is no category"),
        ("Stage", "Stage-IIIB", "'Stage-IIIB' is no category"),
        ("Stage", datetime.datetime(2024, 1, 2), "is a date"),
    ],
)
def test_refused_cells(schema, column, value, match):
    with pytest.raises(ValueError, match=match):
        {c.name: c for c in schema.columns}[column].parse(value)


def test_encode_and_decode_are_inverse():
    size = ClinicalColumn(name="x", kind="numeric", known="before", range=[-500, 500], log1p=True)
    assert size.encode(-9.0)[0] == pytest.approx(-np.log(10))
    assert size.decode(size.encode(-9.0)) == pytest.approx(-9)
    assert size.decode(np.array([99.0])) == 500
    rank = ClinicalColumn(name="x", kind="ordinal", known="before", categories=["a", "b", "c"])
    assert [rank.decode(np.array([v])) for v in (-3, 0.6, 7)] == [0, 1, 2]
    drug = ClinicalColumn(name="x", kind="nominal", known="before", categories=["a", "b", "c"])
    assert drug.encode(1.0).tolist() == [0, 1, 0]
    assert np.isnan(drug.encode(np.nan)).all()
    assert drug.decode(np.array([0.2, 0.5, 0.3])) == 1
