import json

import numpy as np
import pytest
from scripts.datalists import (
    case_name,
    check_cases,
    evaluation_cases,
    inference_cases,
    read_datalist,
    split,
)
from support import write_nifti

LABELS = ["background", "liver", "tumour"]


def dataset(folder, n=10, **entry):
    for i in range(n):
        label = np.zeros((8, 8, 8), np.uint8)
        label[2:5, 2:5, 2:5] = 1 + i % 2
        write_nifti(folder / "imagesTr" / f"c{i}.nii.gz", np.random.default_rng(i).normal(size=(8, 8, 8)).astype("f4"))
        write_nifti(folder / "labelsTr" / f"c{i}.nii.gz", label)
    entries = [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} | entry for i in range(n)]
    write(folder, entries)
    return folder


def write(folder, entries):
    (folder / "dataset.json").write_text(json.dumps({"training": entries}))


def test_bare_entries_are_completed(tmp_path):
    cases = read_datalist(dataset(tmp_path))
    assert cases[3]["case_id"] == cases[3]["patient_id"] == "c3"
    assert cases[3]["image"] == str(tmp_path / "imagesTr" / "c3.nii.gz")
    assert sorted(case["fold"] for case in cases) == sorted(list(range(5)) * 2)


def test_dealt_folds_follow_the_seed_and_not_the_order(tmp_path):
    dataset(tmp_path)
    entries = json.loads((tmp_path / "dataset.json").read_text())["training"]
    first = {case["case_id"]: case["fold"] for case in read_datalist(tmp_path)}
    write(tmp_path, entries[::-1])
    assert {case["case_id"]: case["fold"] for case in read_datalist(tmp_path)} == first
    assert {case["case_id"]: case["fold"] for case in read_datalist(tmp_path, seed=1)} != first


def test_folds_keep_a_patient_together(tmp_path):
    dataset(tmp_path)
    entries = json.loads((tmp_path / "dataset.json").read_text())["training"]
    write(tmp_path, [entry | {"patient_id": f"p{i // 2}"} for i, entry in enumerate(entries)])
    parts = split(read_datalist(tmp_path), 2)
    patients = [{case["patient_id"] for case in part} for part in parts.values()]
    assert not patients[0] & patients[1]
    assert len(parts["validation"]) == 2


def test_patient_in_two_folds_is_refused(tmp_path):
    cases = [{"fold": i % 2, "patient_id": "p", "case_id": str(i)} for i in range(4)]
    with pytest.raises(ValueError, match="in fold 1 and in another one: p"):
        split(cases, 1)


def test_unknown_fold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Fold 7 leaves 10 cases to train on and 0 .*folds \[0, 1, 2, 3, 4\]"):
        split(read_datalist(dataset(tmp_path)), 7)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "lists no case"),
        ([{"image": "a.nii.gz"}], "has no 'label'"),
        ([{"image": "a.nii.gz", "label": "b.nii.gz"}] * 2, "more than once: a"),
        ([{"image": "a.nii", "label": "x", "fold": 0}, {"image": "b.nii", "label": "y"}], "but not to b"),
    ],
)
def test_bad_dataset_json(tmp_path, entries, message):
    write(tmp_path, entries)
    with pytest.raises(ValueError, match=message):
        read_datalist(tmp_path)


def test_missing_dataset_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset.json does not exist"):
        read_datalist(tmp_path)


def test_evaluation_cases_hide_the_label_from_preprocessing(tmp_path):
    cases = evaluation_cases(dataset(tmp_path), 0)
    assert len(cases) == 2
    assert all("label" not in case and case["reference"].endswith(".nii.gz") for case in cases)
    assert len(evaluation_cases(tmp_path, -1)) == 10


def test_inference_finds_files_folders_and_prepared_datasets(tmp_path):
    dataset(tmp_path, 3)
    assert [case["case_id"] for case in inference_cases(tmp_path / "imagesTr" / "c1.nii.gz")] == ["c1"]
    assert [case["case_id"] for case in inference_cases(tmp_path / "imagesTr")] == ["c0", "c1", "c2"]
    assert [case["case_id"] for case in inference_cases(tmp_path)] == ["c0", "c1", "c2"]


def test_prepared_dataset_gives_ids_and_patients(tmp_path):
    dataset(tmp_path, 2)
    entries = json.loads((tmp_path / "dataset.json").read_text())["training"]
    write(tmp_path, [entry | {"case_id": f"P{i}_late", "patient_id": f"P{i}"} for i, entry in enumerate(entries)])
    cases = inference_cases(tmp_path)
    assert [(case["case_id"], case["patient_id"]) for case in cases] == [("P0_late", "P0"), ("P1_late", "P1")]
    assert cases[1]["image"] == str(tmp_path / "imagesTr" / "c1.nii.gz")
    assert "label" not in cases[0]


def test_two_files_of_one_name_are_refused(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, np.zeros((4, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"/a\.nii and .*/a\.nii\.gz are both named a, and so would their masks"):
        inference_cases(tmp_path)


def test_inference_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="no NIfTI file and no DICOM series"):
        inference_cases(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; expected"):
        inference_cases(tmp_path / "nowhere")


def test_case_name_drops_both_suffixes():
    assert case_name("/a/la_000.nii.gz") == "la_000"
    assert case_name("b/scan.v2.nii") == "scan.v2"


class TestCheck:
    @pytest.fixture
    def cases(self, tmp_path):
        return read_datalist(dataset(tmp_path, 5))

    def test_good_data_passes(self, cases):
        check_cases(cases, LABELS)

    def test_missing_file(self, cases):
        cases[0]["image"] += ".gone"
        with pytest.raises(ValueError, match=r"c0\.nii\.gz\.gone: no such file"):
            check_cases(cases, LABELS)

    def test_unreadable_file(self, cases):
        with open(cases[1]["image"], "r+b") as file:
            file.truncate(400)
        with pytest.raises(ValueError, match=r"imagesTr/c1\.nii\.gz: cannot be read"):
            check_cases(cases, LABELS)

    @pytest.mark.parametrize("change", ["shape", "origin"])
    def test_label_on_another_grid(self, cases, change, tmp_path):
        affine = np.eye(4)
        affine[0, 3] = 3.0 * (change == "origin")
        shape = (8, 8, 9) if change == "shape" else (8, 8, 8)
        write_nifti(tmp_path / "labelsTr" / "c2.nii.gz", np.ones(shape, np.uint8), affine)
        with pytest.raises(ValueError, match=r"labelsTr/c2\.nii\.gz: is on another grid than its image"):
            check_cases(cases, LABELS)

    def test_value_out_of_range(self, cases, tmp_path):
        write_nifti(tmp_path / "labelsTr" / "c3.nii.gz", np.full((8, 8, 8), 7, np.uint8))
        with pytest.raises(
            ValueError, match=r"c3\.nii\.gz: holds value 7, but 3 classes are declared \(0\.\.2: background"
        ):
            check_cases(cases, LABELS)

    def test_nan_voxels(self, cases, tmp_path):
        image = np.zeros((8, 8, 8), np.float32)
        image[0, 0, :3] = np.nan
        write_nifti(tmp_path / "imagesTr" / "c4.nii.gz", image)
        with pytest.raises(ValueError, match=r"imagesTr/c4\.nii\.gz: 3 voxels are NaN"):
            check_cases(cases, LABELS)

    def test_empty_label(self, cases, tmp_path):
        write_nifti(tmp_path / "labelsTr" / "c0.nii.gz", np.zeros((8, 8, 8), np.uint8))
        with pytest.raises(ValueError, match=r"c0\.nii\.gz: is empty"):
            check_cases(cases, LABELS)

    def test_all_problems_come_at_once(self, cases, tmp_path):
        write_nifti(tmp_path / "labelsTr" / "c0.nii.gz", np.zeros((8, 8, 8), np.uint8))
        cases[1]["image"] += ".gone"
        with pytest.raises(ValueError, match="2 problem") as error:
            check_cases(cases, LABELS)
        assert "c0" in str(error.value)
        assert "c1" in str(error.value)
