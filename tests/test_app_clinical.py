"""Clinical values on their way to the network: from the table, from the request, or not at all."""

import nibabel as nib
import numpy as np
import pytest
from app_support import task, write_run, write_studies
from scripts.clinical import ClinicalSchema, ClinicalTable
from support import CONFIGS

from monailabel_app.lib.patients import find_row, patient_of


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("table") / "clinical.csv"
    file.write_text("TCIA_ID,age,Sex\nHCC_001,61,1\nHCC_002,70,\nHCC_003,44,2\n")
    schema = ClinicalSchema.from_yaml(CONFIGS / "clinical_hcc_tace.yaml", columns=["age", "Sex"])
    read = ClinicalTable(path=file, schema=schema)
    read.fit(read.patient_ids)
    return read


@pytest.mark.parametrize(
    ("image", "info", "known", "patient"),
    [
        ("HCC_001", {}, (), "HCC_001"),
        ("p7_frame02", {}, ("p7",), "p7"),
        ("p7_frame02", {}, ("p7_frame02",), "p7_frame02"),
        ("1.2.840.1", {"PatientID": "HCC_003 "}, (), "HCC_003"),
    ],
)
def test_patient_of_an_image(image, info, known, patient):
    assert patient_of(image, info, known) == patient


def test_row_of_the_table(table):
    row = find_row(table, "HCC_001", {})
    assert row.told["source"] == "table"
    assert row.values == row.told["values"]
    assert row.values["age"] == 61
    np.testing.assert_array_equal(table.encode(row.values), table.vector("HCC_001"))
    assert row.told["unknown"] == []
    assert find_row(table, "HCC_002", {}).told["unknown"] == ["Sex"]


def test_nothing_known(table):
    row = find_row(table, "HCC_9", {"clinical.age": "", "clinical.Sex": ["", "1", "2"]})
    assert (row.values, row.told["source"]) == (None, "none")
    assert "Nothing is known" in row.told["message"]


def test_request_lies_over_the_row(table):
    row = find_row(table, "HCC_001", {"clinical.age": "75", "clinical": {"Sex": "unknown"}})
    assert row.values == {"age": "75"}
    assert row.told["overrides"] == {"age": "75", "Sex": "unknown"}
    assert row.told["source"] == "table and request"
    np.testing.assert_array_equal(table.encode(row.values), table.encode({"age": 75}))


@pytest.mark.parametrize("value", ["nan", "NA", float("nan"), "Unknown"])
def test_value_that_says_unknown(table, value):
    """In the words of the table's own cells too: the network is told nothing, and the answer says so."""
    row = find_row(table, "HCC_001", {"clinical": {"age": value}})
    assert "age" not in row.values
    assert row.told["values"] == row.values
    assert row.told["unknown"] == ["age"]


def test_values_of_the_row_encode_to_its_vector(table):
    """An override that repeats the row changes nothing at all."""
    row = find_row(table, "HCC_003", {"clinical.age": "44"})
    np.testing.assert_array_equal(table.encode(row.values), table.vector("HCC_003"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"clinical.age": "old"}, "age.*'old'"),
        ({"clinical.age": "700"}, "expected a number from"),
        ({"clinical.Sex": "x"}, "one of"),
        ({"clinical.agee": "60"}, r"no clinical column 'agee' \(did you mean 'age'"),
        ({"clinical": "age=60"}, "expected an object, column to value"),
    ],
)
def test_bad_values_are_refused(table, request_, message):
    with pytest.raises(ValueError, match=message):
        find_row(table, "HCC_001", request_)


def test_overrides_reach_the_network(tmp_path):
    studies = write_studies(tmp_path / "cohort")
    run = write_run(tmp_path / "tiny", table=studies / "clinical.csv")
    served = task(run, studies / "clinical.csv")
    request = {"image": str(studies / "imagesTr" / "HCC_001.nii.gz")}
    found = {}
    for name, more in {"row": {}, "same": {}, "old": {"clinical.age": "95", "clinical.Sex": "1"}}.items():
        file, result = served(request | more)
        found[name] = np.asarray(nib.load(file).dataobj)
    assert result["clinical"]["overrides"] == {"age": "95", "Sex": "1"}
    np.testing.assert_array_equal(found["row"], found["same"])
    assert (found["row"] != found["old"]).any()
    row = {name: str(value) for name, value in served(request)[1]["clinical"]["values"].items()}
    file, _ = served(request | {"clinical": row})
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), found["row"])
