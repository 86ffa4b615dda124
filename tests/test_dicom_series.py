import logging
import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from monai.transforms import LoadImage
from pydicom.uid import MRImageStorage
from scripts.datalists import inference_cases
from scripts.prepare.phantom_dicom import Coding, Geometry, write_ct_series, write_seg

GEOMETRY = Geometry((-60.5, -81.25, -333.5), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (2.5, 3.0), 4.0)
IMAGE = np.random.default_rng(0).integers(-1000, 1500, (12, 9, 6)).astype(np.int16)  # (columns, rows, slices)


def write(folder, geometry=GEOMETRY, **options):
    names = {"patient_id": "P1", "study": "s", "series": "a", "number": 1, "description": "CT", "date": "19991130"}
    return write_ct_series(folder, IMAGE, geometry, coding=Coding(), rng=np.random.default_rng(1), **(names | options))


def write_mask(path, headers):
    write_seg(path, {1: IMAGE > 0}, GEOMETRY, headers, series="seg")


def slices(folder):
    return sorted(folder.glob("*.dcm"), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))


def edit(path, **values):
    item = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(item, name, value)
    item.save_as(path)


def test_each_folder_with_a_series_is_a_case_that_the_reader_takes_whole(tmp_path, caplog):
    headers = write(tmp_path / "P1" / "early")
    write(tmp_path / "P1" / "late", series="b")
    write_mask(tmp_path / "P1" / "mask" / "1.dcm", headers)
    (tmp_path / "P1" / "early" / "notes.txt").write_text("no DICOM")
    (tmp_path / "DICOMDIR").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        cases = inference_cases(tmp_path)
    assert [(case["case_id"], case["patient_id"]) for case in cases] == [("P1_early", "P1"), ("P1_late", "P1")]
    assert "mask holds no CT, MR or PET slices (SEG): passed over" in caplog.text
    volume = LoadImage(image_only=True)(cases[0]["image"])
    assert volume.shape == IMAGE.shape
    np.testing.assert_allclose(volume.affine, GEOMETRY.affine(), atol=1e-4)


def test_mr_series_is_a_case(tmp_path):
    write(tmp_path)
    for path in slices(tmp_path):
        edit(path, SOPClassUID=MRImageStorage, Modality="MR")
    assert len(inference_cases(tmp_path)) == 1


def test_folder_with_a_segmentation_only_holds_no_series(tmp_path):
    write_mask(tmp_path / "mask" / "1.dcm", write(tmp_path / "ct"))
    with pytest.raises(FileNotFoundError, match="no DICOM series"):
        inference_cases(tmp_path / "mask")


def test_two_series_in_a_folder_are_refused_by_name(tmp_path):
    for series in "ab":
        write(tmp_path / series, series=series, description=f"phase {series}")
        for path in slices(tmp_path / series):
            path.rename(tmp_path / f"{series}-{path.name}")
    uid = pydicom.dcmread(next(tmp_path.glob("b-*"))).SeriesInstanceUID
    message = (
        rf"holds 2 image series, .*'phase a' \(6 slices.*'phase b' \(6 slices, SeriesInstanceUID {uid}\)\. Give the"
    )
    with pytest.raises(ValueError, match=message):
        inference_cases(tmp_path)


def test_segmentation_beside_the_slices_is_refused(tmp_path):
    write_mask(tmp_path / "seg.dcm", write(tmp_path))
    with pytest.raises(ValueError, match=r"'CT' \(6 slices.* and 1 other object.*\(SEG; seg.dcm\)"):
        inference_cases(tmp_path)


def test_missing_slice_is_refused_with_the_gap(tmp_path):
    write(tmp_path)
    slices(tmp_path)[2].unlink()
    with pytest.raises(ValueError, match=r"no regular volume: .*8\.000 mm between .*4\.000 mm elsewhere; about 1 miss"):
        inference_cases(tmp_path)


@pytest.mark.parametrize("apart", [0.0, 1.5])
def test_two_phases_in_one_series_are_refused(tmp_path, apart):
    write(tmp_path)
    origin = (*GEOMETRY.origin[:2], GEOMETRY.origin[2] + apart)
    write(tmp_path, replace(GEOMETRY, origin=origin), acquisition=2)
    with pytest.raises(ValueError, match=r"may hold 2 volumes \(AcquisitionNumber 1, 2\), e\.g\. phases"):
        inference_cases(tmp_path)


def test_copied_slice_is_refused(tmp_path):
    write(tmp_path)
    shutil.copy(slices(tmp_path)[0], tmp_path / "copy.dcm")
    with pytest.raises(ValueError, match="two slices lie at nearly the same place"):
        inference_cases(tmp_path)


def test_tilted_gantry_is_refused_because_itk_straightens_it(tmp_path):
    write(tmp_path)
    for k, path in enumerate(slices(tmp_path)):
        position = [float(v) for v in pydicom.dcmread(path).ImagePositionPatient]
        edit(path, ImagePositionPatient=[position[0], position[1] + k, position[2]])
    with pytest.raises(ValueError, match=r"shifted sideways by 1\.000 mm"):
        inference_cases(tmp_path)


def test_series_that_itk_would_read_in_part_is_refused(tmp_path):
    write(tmp_path)
    edit(slices(tmp_path)[3], SliceThickness="4.0")
    assert LoadImage(image_only=True)(tmp_path).shape[-1] < 6
    with pytest.raises(ValueError, match=r"SliceThickness is '4\.000000' in .* but '4\.0' in .*Convert the series"):
        inference_cases(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"<html>not found</html>"), r"\.dcm is not a DICOM file"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), r"\.dcm cannot be read"),
        (lambda path: edit(path, ImagePositionPatient=None), r"\.dcm does not say where its slice lies"),
    ],
)
def test_damaged_slice_is_refused_by_name(tmp_path, damage, message):
    write(tmp_path)
    damage(slices(tmp_path)[1])
    with pytest.raises(ValueError, match=message):
        inference_cases(tmp_path)


def test_all_problems_of_a_tree_come_at_once(tmp_path):
    for name in ("one", "two", "good"):
        write(tmp_path / name)
    for name in ("one", "two"):
        slices(tmp_path / name)[1].unlink()
    with pytest.raises(ValueError, match=r"(?s)/one: .*no regular volume.*\n.*/two: .*no regular volume"):
        inference_cases(tmp_path)


def test_equal_folder_names_of_a_patient_are_told_apart(tmp_path):
    for study in "ab":
        write(tmp_path / study / "portal", study=study, series=study)
    write(tmp_path / "b" / "late", series="c")
    ids = [case["case_id"] for case in inference_cases(tmp_path)]
    uids = [pydicom.dcmread(slices(tmp_path / s / "portal")[0]).SeriesInstanceUID.replace(".", "")[-8:] for s in "ab"]
    assert ids == [f"P1_portal_{uids[0]}", "P1_late", f"P1_portal_{uids[1]}"]


def test_one_series_twice_is_refused(tmp_path):
    for name in "ab":
        write(tmp_path / name / "portal")
    with pytest.raises(ValueError, match=r"/a/portal and .*/b/portal are both named P1_portal_\d{8}, "):
        inference_cases(tmp_path)


def test_ids_can_name_files(tmp_path):
    write(tmp_path / "portal venous", patient_id="12/34")
    (case,) = inference_cases(tmp_path)
    assert (case["case_id"], case["patient_id"]) == ("12_34_portal_venous", "12/34")
