import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
import pydicom
import pytest
from scripts.prepare import prepare_hcc_tace
from scripts.prepare.hcc_tace import EXCLUDED
from scripts.prepare.hcc_tace_case import class_of, merge_segments
from scripts.prepare.phantom import PhantomOptions, make_phantom

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
KEPT = ["HCC_001", "HCC_002", "HCC_003", "HCC_004", "HCC_005", "HCC_006", "HCC_007", "HCC_010"]


def prepare(source, output, **options):
    return prepare_hcc_tace(str(source), str(output), **({"workers": 1, "progress": False} | options))


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.fixture
def few(download, tmp_path):
    """A download of three patients to break things in."""
    for name in ("HCC_001", "HCC_002", "HCC_005"):
        shutil.copytree(download / "HCC-TACE-Seg" / name, tmp_path / "raw" / "HCC-TACE-Seg" / name)
    for table in download.glob("*.xlsx"):
        shutil.copy(table, tmp_path / "raw")
    return tmp_path / "raw"


def files_of(source, patient, folder="4.*"):
    """The slices that were segmented, by position; or the files of another folder."""
    found = list((source / "HCC-TACE-Seg" / patient).glob(f"*/{folder}/*.dcm"))
    if folder == "4.*":
        found = [p for p in found if p.name.startswith("2-")]
        found.sort(key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2]))
    return found


def edit(path, change):
    item = pydicom.dcmread(path)
    change(item)
    item.save_as(path)


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


# choosing


def second_seg(few, change):
    first = files_of(few, "HCC_001", "300.*")[0]
    other = first.parent.with_name("301.000000-Segmentation-2") / "1-1.dcm"
    other.parent.mkdir()
    shutil.copy(first, other)

    def renew(item):
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID[:-3] + "999"
        change(item)

    edit(other, renew)


def warnings_of(output, patient="HCC_001"):
    return json.loads((output / ".prepare" / f"{patient}.json").read_text())["warnings"]


def test_the_most_recent_of_equal_segmentations_is_taken(few, tmp_path):
    def swap(item):
        item.ContentDate = "20000202"
        item.SegmentSequence[1].SegmentLabel, item.SegmentSequence[3].SegmentLabel = "Abdominal aorta", "Mass"

    second_seg(few, swap)
    prepare(few, tmp_path / "out")
    assert (
        "2 segmentations; took 301.000000-Segmentation-2/1-1.dcm (4 classes, drawn 20000202)"
        in warnings_of(tmp_path / "out")[0]
    )
    label, _ = load(tmp_path / "out" / "labelsTr" / "HCC_001.nii.gz")
    truth = make_phantom(1, options=PhantomOptions(matrix=48, slice_spacing=10.0)).label
    np.testing.assert_array_equal(label == 2, truth == 4)


def test_the_segmentation_with_more_classes_is_taken_before_a_more_recent_one(few, tmp_path):
    def poorer(item):
        item.ContentDate = "20000202"
        item.SegmentSequence[1].SegmentLabel = "Cyst"
        item.SegmentSequence[1].SegmentDescription = ""
        item.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Cyst"

    second_seg(few, poorer)
    prepare(few, tmp_path / "out")
    label, _ = load(tmp_path / "out" / "labelsTr" / "HCC_001.nii.gz")
    assert (label == 2).any()
    assert "took 300.000000" in warnings_of(tmp_path / "out")[0]


def test_unusable_segmentation_is_passed_over(few, tmp_path):
    second_seg(few, lambda item: setattr(item, "SegmentationType", "FRACTIONAL"))
    prepare(few, tmp_path / "out")
    assert "passed over" in warnings_of(tmp_path / "out")[0]


def test_unknown_segments_are_reported_as_ignored(few, tmp_path):
    def rename(item):
        segment = item.SegmentSequence[2]
        segment.SegmentLabel, segment.SegmentDescription = "Gallbladder", "unsure"
        segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Gallbladder"

    edit(files_of(few, "HCC_001", "300.*")[0], rename)
    done = prepare(few, tmp_path / "out")
    assert warnings_of(tmp_path / "out") == ["no voxel of portal vein", "ignored segments: Gallbladder/unsure"]
    assert "ignored segments: Gallbladder/unsure" in Path(done["report"]).read_text()


def test_segmentation_that_names_several_phases_is_put_on_the_portal_one(few, tmp_path):
    folder = files_of(few, "HCC_005")[0].parent
    first = [pydicom.dcmread(p, stop_before_pixels=True) for p in folder.glob("1-*.dcm")]
    assert first, "HCC_005 must hold two phases in one series for this test"
    by_place = {tuple(item.ImagePositionPatient): item.SOPInstanceUID for item in first}

    def name_both(item):
        for frame in item.PerFrameFunctionalGroupsSequence:
            sources = frame.DerivationImageSequence[0].SourceImageSequence
            extra = pydicom.Dataset()
            extra.ReferencedSOPClassUID = sources[0].ReferencedSOPClassUID
            extra.ReferencedSOPInstanceUID = by_place[tuple(frame.PlanePositionSequence[0].ImagePositionPatient)]
            sources.append(extra)

    edit(files_of(few, "HCC_005", "300.*")[0], name_both)
    prepare(few, tmp_path / "out")
    assert "names 2 volumes" in warnings_of(tmp_path / "out", "HCC_005")[0]
    image, _ = load(tmp_path / "out" / "imagesTr" / "HCC_005.nii.gz")
    np.testing.assert_array_equal(image, make_phantom(5, options=PhantomOptions(matrix=48, slice_spacing=10.0)).image)


def test_segmentation_without_a_series_is_found_by_its_slices(few, tmp_path):
    edit(files_of(few, "HCC_001", "300.*")[0], lambda item: delattr(item, "ReferencedSeriesSequence"))
    assert not prepare(few, tmp_path / "out")["broken"]
    assert warnings_of(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (("Liver",), 1),
        (("liver parenchyma",), 1),
        (("Mass",), 2),
        (("Liver tumor",), 2),
        (("TUMOUR",), 2),
        (("Neoplasm",), 2),
        (("Necrosis",), 2),
        (("Portal vein",), 3),
        (("Abdominal aorta",), 4),
        (("Aorta",), 4),
        (("Segment 1", "", "Portal vein"), 3),
        (("Segmentation", "HCC"), 2),
        (("Portal vein thrombosis",), None),
        (("Spleen",), None),
        (("Delivery",), None),
        ((), None),
    ],
)
def test_segment_names(texts, value):
    assert class_of(texts) == value


def test_tumour_comes_before_vessels_before_liver():
    everywhere = np.ones((1, 1, 4), bool)
    masks = {n: everywhere & (np.arange(4) >= n - 1) for n in range(1, 5)}
    label = merge_segments(masks, {1: 1, 2: 4, 3: 3, 4: 2})
    assert label.ravel().tolist() == [1, 4, 3, 2]
    label = merge_segments(masks, {1: 2, 2: 1, 3: 4, 4: None})
    assert label.ravel().tolist() == [2, 2, 2, 2]


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


# resuming


def test_second_run_makes_nothing_again(few, tmp_path):
    prepare(few, tmp_path / "out")
    before, stamps = digests(tmp_path / "out"), {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.nii.gz")}
    done = prepare(few, tmp_path / "out")
    assert done["resumed"] == 3
    assert digests(tmp_path / "out") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.nii.gz")} == stamps


def test_changed_deleted_and_overwritten_cases_are_made_again(few, tmp_path):
    prepare(few, tmp_path / "out")
    os.utime(files_of(few, "HCC_001")[0], ns=(1, 1))
    (tmp_path / "out" / "labelsTr" / "HCC_002.nii.gz").unlink()
    assert prepare(few, tmp_path / "out")["resumed"] == 1
    assert prepare(few, tmp_path / "out", overwrite=True)["resumed"] == 0


def test_killed_run_resumes_to_the_same_bytes(few, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\n"
        "from scripts.prepare import hcc_tace, hcc_tace_case, output, prepare_hcc_tace\n"
        "import time\n"
        "whole = output.os.replace\n"
        "def slow(a, b):\n"
        "    if 'HCC_002' in str(b) and 'imagesTr' in str(b): print('now', flush=True); time.sleep(60)\n"
        "    whole(a, b)\n"
        "output.os.replace = slow\n"
        f"prepare_hcc_tace({str(few)!r}, {str(tmp_path / 'out')!r}, workers=1, progress=False)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "now\n"  # the label of the second case is there, its image is not
        process.send_signal(signal.SIGKILL)
    left = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert "HCC_002.nii.gz" in left
    assert any(name.endswith(".part") for name in left)
    assert "dataset.json" not in left
    done = prepare(few, tmp_path / "out")
    assert (done["resumed"], done["kept"]) == (1, 3)
    prepare(few, tmp_path / "reference")
    assert digests(tmp_path / "out") == digests(tmp_path / "reference")


def test_workers_end_with_their_killed_parent(few, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\n"
        "from scripts.prepare.output import run_in_parallel\n"
        "import os, time\n"
        "if __name__ == '__main__':\n"
        f"    run_in_parallel(time.sleep, {{'a': 30, 'b': 30}}, workers=2, progress=False)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)]) as process:
        deadline = time.monotonic() + 30
        while len(children := workers_of(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) == 2
    assert not any(alive(pid) for pid in children)


def workers_of(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and "spawn_main" in (path.parent / "cmdline").read_text():
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_workers_make_the_same_as_one(few, tmp_path):
    prepare(few, tmp_path / "one")
    prepare(few, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
