"""What `prepare hcc_tace` makes of a download, and of mistakes in calling it."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from prepare_support import KEPT, digests, edit, files_of, load, prepare
from scripts.prepare.hcc_tace import EXCLUDED
from scripts.prepare.phantom import PhantomOptions, make_phantom

# what comes out


@pytest.mark.parametrize("patient", KEPT)
def test_image_and_label_are_those_of_the_segmented_volume(prepared, patient):
    truth = make_phantom(int(patient[4:]), options=PhantomOptions(matrix=48, slice_spacing=10.0))
    image, affine = load(prepared / "imagesTr" / f"{patient}.nii.gz")
    label, label_affine = load(prepared / "labelsTr" / f"{patient}.nii.gz")
    np.testing.assert_array_equal(image, truth.image)
    np.testing.assert_array_equal(label, truth.label)
    np.testing.assert_array_equal(affine, label_affine)
    np.testing.assert_allclose(affine, truth.geometry.affine(), atol=1e-4)
    assert (image.dtype, label.dtype) == (np.int16, np.uint8)


def test_decoys_are_passed_over(prepared, download):
    truth = json.loads((download / "phantom_truth.json").read_text())["patients"]
    records = {p: json.loads((prepared / ".prepare" / f"{p}.json").read_text()) for p in KEPT}
    assert all(records[p]["series"]["uid"] == truth[p]["series"] for p in KEPT)
    assert any(record["series"]["of"] > 1 for record in records.values())
    assert any(record["series"]["volumes"] > 1 for record in records.values())
    assert not any(record["warnings"] for record in records.values())


def test_datalist_lists_the_kept_cases_with_folds(prepared):
    content = json.loads((prepared / "dataset.json").read_text())
    assert content["labels"] == {
        "0": "background",
        "1": "liver",
        "2": "tumour",
        "3": "portal vein",
        "4": "abdominal aorta",
    }
    assert content["numTraining"] == len(content["training"]) == 8
    assert [case["case_id"] for case in content["training"]] == KEPT
    for case in content["training"]:
        assert set(case) == {"image", "label", "case_id", "patient_id", "fold", "group"}
        assert (prepared / case["image"]).is_file()
        assert (prepared / case["label"]).is_file()
    folds = [case["fold"] for case in content["training"]]
    assert sorted(folds) == [0, 0, 1, 1, 2, 2, 3, 4]


def test_clinical_table_is_the_spreadsheet_of_the_kept_patients(prepared, download):
    book = openpyxl.load_workbook(next(download.glob("*.xlsx")))
    source = {row[0]: row for row in book["data table"].iter_rows(values_only=True)}
    with open(prepared / "clinical.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["TCIA_ID", *KEPT]
    for row in rows:
        assert row == ["" if cell is None else str(cell) for cell in source[row[0]]]


def test_the_four_patients_of_the_paper_are_dropped_and_it_is_said(prepared, download, tmp_path):
    report = (prepared / "prepare-report.html").read_text()
    assert "Dropped, as the paper on this data does: HCC_008, HCC_009." in report
    assert not list(prepared.rglob("HCC_008*"))
    assert set(EXCLUDED) == {"HCC_017", "HCC_008", "HCC_025", "HCC_009"}


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [("", ["HCC_001", "HCC_002", "HCC_005"]), ("HCC_001,HCC_002", ["HCC_005"]), (["HCC_005"], ["HCC_001", "HCC_002"])],
)
def test_other_patients_can_be_dropped(few, tmp_path, exclude, kept):
    done = prepare(few, tmp_path / "out", exclude=exclude)
    assert done["kept"] == len(kept)
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text())["training"]
    assert [case["case_id"] for case in listed] == kept
    assert ("on request" in Path(done["report"]).read_text()) == bool(exclude)


def test_report_stands_alone_and_shows_every_case(prepared):
    html = (prepared / "prepare-report.html").read_text()
    assert html.count("data:image/png;base64,") == 8
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "<b>8</b>kept" in html
    assert "<b>2</b>dropped" in html
    assert "one of 2 CT series" in html
    record = json.loads((prepared / ".prepare" / "HCC_001.json").read_text())
    assert f"{record['volumes_ml']['tumour']:.1f}" in html


def test_report_escapes_what_files_say(few, tmp_path):
    for path in files_of(few, "HCC_001"):
        edit(path, lambda item: setattr(item, "SeriesDescription", "<script>alert(1)</script>"))
    done = prepare(few, tmp_path / "out")
    html = Path(done["report"]).read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


# layouts and mistakes


def test_folders_without_names_are_read_by_patient_id(few, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for n, path in enumerate(sorted(few.rglob("*.dcm"))):
        shutil.copy(path, flat / f"{n:05d}")
    shutil.copy(next(few.glob("*.xlsx")), flat)
    done = prepare(flat, tmp_path / "out")
    assert (done["kept"], done["broken"]) == (3, {})
    reference = prepare(few, tmp_path / "reference")
    assert reference["kept"] == 3
    for folder in ("imagesTr", "labelsTr"):
        assert digests(tmp_path / "out" / folder) == digests(tmp_path / "reference" / folder)


def test_patient_without_a_clinical_row_is_kept_with_a_warning(few, tmp_path):
    path = next(few.glob("*.xlsx"))
    book = openpyxl.load_workbook(path)
    book["data table"].delete_rows(2)
    book.save(path)
    done = prepare(few, tmp_path / "out")
    assert done["kept"] == 3
    assert "every clinical value is unknown" in Path(done["report"]).read_text()


def test_clinical_table_can_be_named(few, tmp_path):
    shutil.move(next(few.glob("*.xlsx")), tmp_path / "elsewhere.xlsx")
    (tmp_path / "x.csv").write_text("TCIA_ID,age\nHCC_001,50\n")
    prepare(few, tmp_path / "out", clinical=str(tmp_path / "x.csv"))
    assert (tmp_path / "out" / "clinical.csv").read_text() == "TCIA_ID,age\nHCC_001,50\n"


def two_tables(few):
    shutil.copy(next(few.glob("*.xlsx")), few / "other clinical.xlsx")


def double_row(few):
    book = openpyxl.load_workbook(path := next(few.glob("*.xlsx")))
    book["data table"].append(["HCC_001"])
    book.save(path)


def no_id_column(few):
    book = openpyxl.load_workbook(path := next(few.glob("*.xlsx")))
    book["data table"]["A1"] = "patient"
    book.save(path)


@pytest.mark.parametrize(
    ("change", "options", "kind", "match"),
    [
        (lambda few: shutil.rmtree(few), {}, FileNotFoundError, "is not a folder; --source must be"),
        (
            lambda few: shutil.rmtree(few / "HCC-TACE-Seg"),
            {},
            FileNotFoundError,
            "no patients found .*HCC_001/<study>",
        ),
        (lambda few: next(few.glob("*.xlsx")).unlink(), {}, FileNotFoundError, "no clinical spreadsheet"),
        (two_tables, {}, ValueError, "2 spreadsheets found: .* --clinical"),
        (double_row, {}, ValueError, "two rows for HCC_001"),
        (no_id_column, {}, ValueError, "no column 'TCIA_ID'"),
        (lambda few: next(few.glob("*.xlsx")).write_bytes(b"x"), {}, ValueError, "clinical table .* cannot be read"),
        (lambda few: None, {"clinical": "nowhere.xlsx"}, FileNotFoundError, "nowhere.xlsx does not exist"),
        (lambda few: None, {"exclude": "17"}, ValueError, "names '17'; expected patient ids"),
        (lambda few: None, {"exclude": "HCC_001,HCC_002,HCC_005"}, ValueError, "no patient is left"),
        (lambda few: None, {"folds": 1}, ValueError, "folds is 1"),
        (lambda few: None, {"workers": 0}, ValueError, "workers is 0"),
        (
            lambda few: [p.unlink() for p in few.rglob("1-1.dcm")],
            {},
            ValueError,
            "none of the 3 cases .* HCC_001: no segm",
        ),
    ],
)
def test_mistakes_are_explained(few, tmp_path, change, options, kind, match):
    change(few)
    with pytest.raises(kind, match=match):
        prepare(few, tmp_path / "out", **options)
