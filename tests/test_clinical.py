"""Tables of patients: what is read, refused, standardised, imputed and kept."""

import json
import pickle
import warnings

import numpy as np
import pytest
from clinical_support import HEADER, ROWS, changed, write, write_schema
from scripts.clinical import ClinicalSchema, ClinicalTable, check, describe_table
from torch.utils.data import DataLoader, Dataset


@pytest.fixture
def schema_file(tmp_path):
    return write_schema(tmp_path)


@pytest.fixture
def schema(schema_file):
    return ClinicalSchema.from_yaml(schema_file)


@pytest.mark.parametrize("name", ["table.csv", "table.xlsx"])
def test_vectors_are_standardised_by_the_training_patients_only(tmp_path, schema, name):
    table = ClinicalTable(path=write(tmp_path, name=name), schema=schema)
    assert table.patient_ids == ("P1", "P2", "P3", "P4")
    statistics = table.fit(["P1", "P2", "P3", "P3"])
    assert statistics["n_patients"] == 3
    assert statistics["mean"][0] == pytest.approx(60)
    vectors = np.stack([table.vector(p) for p in table.patient_ids])  # (4, F)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:, 0], (np.array([40, 60, 80, 90]) - 60) / np.std([40, 60, 80]), rtol=1e-6)
    logs = np.log1p([2.0, 4.0])
    np.testing.assert_allclose(vectors[3, 2], (np.log1p(8) - logs.mean()) / logs.std(), rtol=1e-6)
    assert np.isnan(vectors[1, 2])
    assert vectors[1, 4:].tolist() == [0, 1, 0]
    assert np.isnan(vectors[2:, 4:]).all()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_separators_and_quoted_cells(tmp_path, schema, separator):
    path = write(tmp_path, sep=separator, encoding="utf-8-sig")
    assert ClinicalTable(path=path, schema=schema).patient_ids == ("P1", "P2", "P3", "P4")


def test_headers_match_whatever_their_case_and_ids_may_be_numbers(tmp_path, schema):
    rows = [[float(i), *row[1:]] for i, row in enumerate(ROWS, 1234567)]
    header = ["patient_id", "AGE ", *HEADER[2:]]
    table = ClinicalTable(path=write(tmp_path, rows, header), schema=schema)
    assert table.patient_ids[0] == "1234567"
    assert table.codes[0, 0] == 40


def test_every_problem_is_named_with_row_patient_and_column(tmp_path, schema):
    rows = [*changed(1, "Tr_Size", 700), ["P1", 50, ">50", 9, 1, "Stage-IV", "a", 5]]
    rows.append(["P7", 50, ">50", 9, 1, "Stage-IV", "a", 5])
    path = write(tmp_path, rows)
    with pytest.raises(ValueError, match=r'table.csv, row 3 \(patient P2\), column "Tr_Size": 700 cm') as error:
        ClinicalTable(path=path, schema=schema)
    assert "patient 'P1' is in rows 2 and 6; keep one row per patient" in str(error.value)
    assert 'row 7 (patient P7), column "Sex": 9 is no category' in str(error.value).replace("'9'", "9")
    with pytest.warns(UserWarning, match="700 cm"):
        table = ClinicalTable(path=path, schema=schema, on_error="warn")
    assert np.isnan(table.codes[1, 2])
    assert table.codes[0, 0] == 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ClinicalTable(path=path, schema=schema, on_error="ignore").problems) == 3


def test_many_problems_are_cut(tmp_path, schema):
    rows = [[f"P{i}", 700, ">50", 1, 1, "Stage-IV", "a", 5] for i in range(30)]
    with pytest.raises(ValueError, match="and 10 more"):
        ClinicalTable(path=write(tmp_path, rows), schema=schema)


def test_absent_and_further_columns(tmp_path, schema):
    header = ["id", "age", "agegp", "Sex", "size in inches", "Stage", "Drug", "OS"]
    with pytest.warns(UserWarning, match="lacks the columns Tr_Size"):
        table = ClinicalTable(path=write(tmp_path, header=header), schema=schema)
    assert table.ignored == ["agegp", "size in inches", "OS"]
    with pytest.warns(UserWarning, match="no training patient has a value for Tr_Size"):
        table.fit(table.patient_ids)
    assert np.isnan(table.vector("P1")[2])


@pytest.mark.parametrize(
    ("rows", "header", "match"),
    [
        (ROWS, ["who", *HEADER[1:]], "no column 'id' with the patients' ids"),
        (ROWS, [*HEADER[:-1], "age"], "more than one column 'age'"),
        (ROWS, ["id", *"abcdefg"], "none of the schema's columns"),
        ([], HEADER, "no patient"),
        (changed(1, "id", ""), HEADER, "row 3: no patient id in column 'id'"),
    ],
)
def test_unusable_tables(tmp_path, schema, rows, header, match):
    with pytest.raises(ValueError, match=match):
        ClinicalTable(path=write(tmp_path, rows, header), schema=schema)


def test_unreadable_files(tmp_path, schema):
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        ClinicalTable(path=tmp_path / "none.csv", schema=schema)
    for name, match in [("a.xlsx", "a.xlsx cannot be read"), ("a.json", "expected an xlsx or csv"), ("a.csv", "empty")]:
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=match):
            ClinicalTable(path=tmp_path / name, schema=schema)
    (tmp_path / "long.csv").write_text("id,age\nP1,40,50\n")
    with pytest.raises(ValueError, match="row 2 has 3 cells, but the header has 2"):
        ClinicalTable(path=tmp_path / "long.csv", schema=schema)


def test_wrong_arguments(tmp_path, schema):
    with pytest.raises(TypeError, match="schema is a str"):
        ClinicalTable(path=None, schema="schema.yaml")
    with pytest.raises(ValueError, match="on_error 'stop'"):
        ClinicalTable(path=None, schema=schema, on_error="stop")
    table = ClinicalTable(path=write(tmp_path), schema=schema)
    with pytest.raises(ValueError, match="not fitted"):
        table.vector("P1")
    with pytest.raises(ValueError, match="not fitted"):
        table.save(tmp_path / "fitted.json")
    with pytest.raises(ValueError, match="none of the 1 training patients"):
        table.fit(["X"])


def test_a_patient_without_a_row(tmp_path, schema):
    table = ClinicalTable(path=write(tmp_path), schema=schema)
    with pytest.warns(UserWarning, match="no row for the training patients X"):
        table.fit(["P1", "P2", "X"])
    with pytest.warns(
        UserWarning, match=r"missing clinical row: patient 'p1' is not in .*table.csv.*did you mean 'P1'"
    ):
        assert np.isnan(table.vector("p1")).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table.vector("p1").shape == (7,)
    strict = ClinicalTable(path=write(tmp_path), schema=schema, on_missing="raise")
    with pytest.raises(ValueError, match="missing clinical row: patient 'X'"):
        strict.vector("X")


def test_no_table_at_all(schema):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vector = ClinicalTable(path=None, schema=schema).vector("anyone")
    assert vector.dtype == np.float32
    assert np.isnan(vector).all()


def test_a_row_given_by_hand(tmp_path, schema):
    table = ClinicalTable(path=write(tmp_path), schema=schema)
    table.fit(table.patient_ids)
    by_hand = table.encode({"AGE": "60", "sex": "female", "Stage": "Stage IIIA", "Drug": "b", "Tr_Size": ""})
    np.testing.assert_array_equal(by_hand, table.vector("P2"))
    with pytest.raises(ValueError, match="no clinical column 'ages'.*did you mean 'age'"):
        table.encode({"ages": 4})
    with pytest.raises(ValueError, match='the given values, column "Tr_Size": 700 cm'):
        table.encode({"Tr_Size": 700})


def test_constant_columns_have_deviation_one(tmp_path, schema):
    table = ClinicalTable(path=write(tmp_path, [ROWS[0], ROWS[2]]), schema=schema)
    table.fit(["P1", "P3"])
    assert table.vector("P1")[1] == 0
    assert table.encode({"Sex": 2})[1] == 1


@pytest.mark.parametrize("impute", [False, True])
def test_saved_statistics_give_the_same_vectors(tmp_path, schema, impute):
    path = write(tmp_path)
    table = ClinicalTable(path=path, schema=schema, impute=impute)
    table.fit(table.patient_ids)
    table.save(tmp_path / "new" / "fitted.json")
    again = ClinicalTable(path=path, schema=schema, impute=impute, fitted=tmp_path / "new" / "fitted.json")
    for patient in table.patient_ids:
        np.testing.assert_array_equal(again.vector(patient), table.vector(patient))


def test_statistics_of_other_features_are_refused(tmp_path, schema, schema_file):
    table = ClinicalTable(path=write(tmp_path), schema=schema)
    table.fit(table.patient_ids)
    fitted = tmp_path / "fitted.json"
    with pytest.raises(FileNotFoundError, match=r"fitted\.json do not exist"):
        ClinicalTable(path=None, schema=schema, fitted=fitted)
    table.save(fitted)
    other = ClinicalSchema.from_yaml(schema_file, columns=["age", "Sex"])
    with pytest.raises(ValueError, match=r"other features.*only there: .*'Stage'"):
        ClinicalTable(path=None, schema=other, fitted=fitted)
    order = ClinicalSchema.from_yaml(schema_file, columns=["Sex", "age", "Tr_Size", "Stage", "Drug"])
    with pytest.raises(ValueError, match="another order"):
        ClinicalTable(path=None, schema=order, fitted=fitted)
    with pytest.raises(ValueError, match="holds no imputer"):
        ClinicalTable(path=None, schema=schema, fitted=fitted, impute=True)
    stored = json.loads(fitted.read_text())
    for broken in ({**stored, "format": 2}, {**stored, "std": [1.0]}, {"format": 1}, []):
        fitted.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"fitted.json cannot be used as fitted statistics"):
            ClinicalTable(path=None, schema=schema, fitted=fitted)


def test_imputed_vectors_have_valid_values(tmp_path, schema):
    rng = np.random.default_rng(0)
    young, old = [1, "Stage_ 0-2", "a"], [2, "Stage-IV", "b"]
    rows = []
    for i, age in enumerate(rng.integers(30, 90, 40)):
        sex, stage, drug = old if age > 60 else young
        rows.append([f"P{i}", age, "", sex, round(age / 10, 1), stage, drug, 1])
    rows.append(["half", 85, "", "", "", "", "", ""])
    rows.append(["nothing", *[""] * 7])
    table = ClinicalTable(path=write(tmp_path, rows), schema=schema, impute=True)
    table.fit([f"P{i}" for i in range(40)])
    vector = table.vector("half")
    assert not np.isnan(vector).any()
    assert vector[4:].tolist() == [0, 1, 0]  # b, as everyone above 60
    np.testing.assert_allclose(vector[[1, 3]], table.encode({"Sex": 2, "Stage": "Stage-IV"})[[1, 3]])
    assert np.isnan(table.vector("nothing")).all()
    known = ClinicalTable(path=write(tmp_path, rows), schema=schema)
    known.fit([f"P{i}" for i in range(40)])
    np.testing.assert_array_equal(table.vector("P0"), known.vector("P0"))


class Vectors(Dataset):
    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table.patient_ids)

    def __getitem__(self, index):
        return self.table.vector(self.table.patient_ids[index])


def test_tables_travel_to_workers(tmp_path, schema):
    table = ClinicalTable(path=write(tmp_path), schema=schema, impute=True)
    table.fit(table.patient_ids)
    again = pickle.loads(pickle.dumps(table))
    np.testing.assert_array_equal(again.vector("P2"), table.vector("P2"))
    (batch,) = DataLoader(Vectors(table), batch_size=4, num_workers=1)
    np.testing.assert_array_equal(batch[1].numpy(), table.vector("P2"))


def test_check_reports_everything_at_once(tmp_path, schema_file):
    text = check(str(write(tmp_path, changed(1, "Tr_Size", 700))), schema=str(schema_file))
    assert "4 patients, 5 columns, 7 features" in text
    assert "1 problems:" in text
    assert 'row 3 (patient P2), column "Tr_Size": 700 cm' in text
    assert check(str(write(tmp_path)), schema=str(schema_file)).endswith("no problems")


def test_describe_counts_cells(tmp_path, schema):
    table = ClinicalTable(path=write(tmp_path), schema=schema)
    rows = describe_table(table).set_index("column")
    assert rows.loc["Tr_Size", ["known", "missing", "holds"]].tolist() == [3, 1, "2 / 4 / 8"]
    assert rows.loc["Stage", "holds"] == "Stage_ 0-2: 1, Stage-IIIA: 1, Stage-IV: 2"
