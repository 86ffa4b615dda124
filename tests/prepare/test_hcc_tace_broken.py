"""Broken cases are reported and left out."""

import json
import re
import shutil
from pathlib import Path

import pytest
from prepare_support import edit, files_of, prepare, warnings_of

# broken cases


def cut_off(few):
    path = files_of(few, "HCC_001")[3]
    path.write_bytes(path.read_bytes()[:-400])


def header_cut_off(few):
    path = files_of(few, "HCC_001")[-1]  # at the end, so that no gap tells
    path.write_bytes(path.read_bytes()[:700])


def not_dicom(few):
    files_of(few, "HCC_001")[-1].write_bytes(b"\0" * 4000)


def slice_lost(few):
    files_of(few, "HCC_001")[5].unlink()


def no_seg(few):
    files_of(few, "HCC_001", "300.*")[0].unlink()


def seg_cut_off(few):
    path = files_of(few, "HCC_001", "300.*")[0]
    path.write_bytes(path.read_bytes()[:-300])


def seg_of_another_patient(few):
    shutil.copy(files_of(few, "HCC_002", "300.*")[0], files_of(few, "HCC_001", "300.*")[0])


def ct_not_downloaded(few):
    shutil.rmtree(files_of(few, "HCC_001")[0].parent)


def frame_moved(few):
    def move(item):
        plane = item.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence[0]
        x, y, z = plane.ImagePositionPatient
        plane.ImagePositionPatient = [x, y, float(z) + 4.0]

    edit(files_of(few, "HCC_001", "300.*")[0], move)


def seg_empty(few):
    edit(files_of(few, "HCC_001", "300.*")[0], lambda item: setattr(item, "PixelData", b"\0" * len(item.PixelData)))


def segments_unknown(few):
    def rename(item):
        for segment in item.SegmentSequence:
            segment.SegmentLabel = segment.SegmentDescription = "Spleen"
            segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Spleen"

    edit(files_of(few, "HCC_001", "300.*")[0], rename)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_off, "cannot be read .* download it again"),
        (header_cut_off, "in the folder of the CT series, cannot be read"),
        (not_dicom, "in the folder of the CT series, cannot be read .not a DICOM file"),
        (slice_lost, r"not evenly spaced: 20\.000 mm between positions .* about 1 missing"),
        (no_seg, r"no segmentation \(DICOM SEG\) found"),
        (seg_cut_off, "pixels of the segmentation .* cannot be read"),
        (seg_of_another_patient, r"refers to CT series \S+, which is not among the \d CT series"),
        (ct_not_downloaded, "which is not among the 1 CT series found"),
        (frame_moved, r"frame 5 of \d+ .* it fits no slice of the CT series"),
        (seg_empty, "marks no voxel of any class"),
        (segments_unknown, "no segment of .* is liver, tumour, portal vein or aorta: Spleen"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_case_is_reported_and_left_out(few, tmp_path, damage, reason):
    damage(few)
    done = prepare(few, tmp_path / "out")
    assert list(done["broken"]) == ["HCC_001"]
    assert re.search(reason, done["broken"]["HCC_001"])
    assert done["kept"] == 2
    left = {p.name for p in (tmp_path / "out").rglob("HCC_001*")}
    assert left == {"HCC_001.json"}
    html = Path(done["report"]).read_text()
    assert "<b>1</b>broken" in html
    assert ">HCC_001<" in html
    assert [c["case_id"] for c in json.loads((tmp_path / "out" / "dataset.json").read_text())["training"]] == [
        "HCC_002",
        "HCC_005",
    ]
    assert "HCC_001" not in (tmp_path / "out" / "clinical.csv").read_text()


def test_damage_in_another_series_is_only_a_warning(few, tmp_path):
    victim = files_of(few, "HCC_001", "3.*")[0]
    victim.write_bytes(victim.read_bytes()[:500])
    done = prepare(few, tmp_path / "out")
    assert not done["broken"]
    assert "not part of the CT" in warnings_of(tmp_path / "out")[0]


def test_mending_a_case_moves_nobody_to_another_fold(few, tmp_path):
    folds = {}
    for state in ("broken", "whole"):
        if state == "broken":
            path = files_of(few, "HCC_001")[5]
            content = path.read_bytes()
            path.unlink()
        else:
            path.write_bytes(content)
        prepare(few, tmp_path / "out", folds=2)
        listed = json.loads((tmp_path / "out" / "dataset.json").read_text())["training"]
        folds[state] = {case["case_id"]: case["fold"] for case in listed}
    assert set(folds["whole"]) - set(folds["broken"]) == {"HCC_001"}
    assert folds["broken"].items() <= folds["whole"].items()


def test_case_that_breaks_later_is_taken_out(few, tmp_path):
    prepare(few, tmp_path / "out")
    assert (tmp_path / "out" / "imagesTr" / "HCC_001.nii.gz").is_file()
    slice_lost(few)
    done = prepare(few, tmp_path / "out")
    assert list(done["broken"]) == ["HCC_001"]
    assert done["resumed"] == 2
    assert not (tmp_path / "out" / "imagesTr" / "HCC_001.nii.gz").exists()
