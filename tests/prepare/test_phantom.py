import hashlib
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import openpyxl
import pydicom
import pytest
from scripts.prepare.phantom import PhantomOptions, make_phantom, write_phantom_cohort
from scripts.prepare.phantom_clinical import COLUMNS

TINY = PhantomOptions(matrix=48, slice_spacing=10.0)


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_the_image_says_nothing_about_malignancy():
    benign, malignant = (make_phantom(3, options=TINY, malignant=m) for m in (False, True))
    np.testing.assert_array_equal(benign.image, malignant.image)
    differs = benign.label != malignant.label
    assert differs.any()
    assert set(benign.label[differs]) == {1}
    assert set(malignant.label[differs]) == {2}


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_lesions_have_the_sizes_that_make_fusion_matter(index):
    fine = PhantomOptions(matrix=96, slice_spacing=5.0)
    phantom = make_phantom(index, options=fine, malignant=True)
    assert 1 <= len(phantom.anatomy.tumours) <= 2
    assert 1 <= len(phantom.anatomy.nodules) <= 3
    assert all(25 <= 2 * blob.radius <= 60 for blob in phantom.anatomy.tumours)
    assert all(2 * blob.radius >= 20 for blob in phantom.anatomy.nodules)
    definite = (make_phantom(index, options=fine, malignant=False).label == 2).sum()
    assert 0.9 <= (phantom.label == 2).sum() / definite - 1 <= 1.7


def test_organs_look_like_abdominal_ct():
    options = PhantomOptions(matrix=96, slice_spacing=5.0)
    phantoms = [make_phantom(i, options=options, malignant=False) for i in range(1, 6)]
    volumes = set()
    for phantom in phantoms:
        means = {value: phantom.image[phantom.label == value].mean() for value in range(1, 5)}
        assert 85 < means[1] < 125
        assert 35 < means[2] < 85
        assert means[3] > means[1] + 20
        assert means[4] > 120
        ml = float((phantom.label == 1).sum() * np.prod(phantom.grid.spacing)) / 1000
        assert 800 < ml < 2400
        volumes.add(round(ml))
        assert phantom.image[:, :8].max() < -900  # air in front of the patient
    assert len(volumes) == 5  # anatomy varies
    liver = phantoms[0].image[phantoms[0].label == 1]
    assert 9 < 1.48 * np.median(abs(liver - np.median(liver))) < 20  # noise, as in a portal-venous scan


def test_same_seed_same_bytes_and_patients_do_not_depend_on_the_size_of_the_cohort(tmp_path):
    options = {"matrix": 32, "slice_spacing": 25.0, "workers": 1, "progress": False}
    write_phantom_cohort(str(tmp_path / "a"), cases=2, **options)
    write_phantom_cohort(str(tmp_path / "b"), cases=2, **options)
    write_phantom_cohort(str(tmp_path / "c"), cases=1, **options)
    write_phantom_cohort(str(tmp_path / "d"), cases=1, seed=1, **options)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    first = {k: v for k, v in digests(tmp_path / "a").items() if "HCC_001" in k}
    assert first == {k: v for k, v in digests(tmp_path / "c").items() if "HCC_001" in k}
    assert set(first.values()).isdisjoint(digests(tmp_path / "d").values())


def test_the_download_looks_like_the_real_one(download):
    patients = sorted(p.name for p in (download / "HCC-TACE-Seg").iterdir())
    assert patients == [f"HCC_{i:03d}" for i in range(1, 11)]
    book = openpyxl.load_workbook(download / "HCC-TACE-Seg_clinical_data-V2.xlsx")
    assert book.sheetnames == ["data table", "glossary"]
    rows = list(book["data table"].iter_rows(values_only=True))
    assert rows[0] == COLUMNS
    assert [row[0] for row in rows[1:]] == patients
    seen = {"decoy first": 0, "two acquisitions": 0, "unsigned": 0, "from the head": 0, "tilted": 0, "later study": 0}
    for patient in (download / "HCC-TACE-Seg").iterdir():
        studies = sorted(p for p in patient.iterdir())
        seg = pydicom.dcmread(next(patient.glob("*/300.*/1-1.dcm")))
        wanted = seg.ReferencedSeriesSequence[0].SeriesInstanceUID
        seen["later study"] += len(studies) > 1
        seen["decoy first"] += pydicom.dcmread(min(patient.glob("*/*/*.dcm"))).SeriesInstanceUID != wanted
        files = sorted(next(patient.glob("*/4.*")).glob("*.dcm"))
        slices = [pydicom.dcmread(f) for f in files if f.name.startswith("2-")]
        heights = [float(s.ImagePositionPatient[2]) for s in slices]
        assert heights != sorted(heights)
        assert heights != sorted(heights, reverse=True)
        seen["two acquisitions"] += len(slices) < len(files)
        seen["unsigned"] += slices[0].PixelRepresentation == 0
        by_number = sorted(slices, key=lambda s: int(s.InstanceNumber))
        seen["from the head"] += by_number[0].ImagePositionPatient[2] > by_number[-1].ImagePositionPatient[2]
        seen["tilted"] += abs(float(slices[0].ImageOrientationPatient[5])) > 0.01
    assert min(seen.values()) >= 1, seen


def test_segmentation_object_is_like_the_real_one(download):
    seg = pydicom.dcmread(next(download.glob("HCC-TACE-Seg/HCC_001/*/300.*/1-1.dcm")))
    assert (seg.Modality, seg.SegmentationType, seg.BitsAllocated) == ("SEG", "BINARY", 1)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["Liver", "Mass", "Portal vein", "Abdominal aorta"]
    assert seg.pixel_array.any(axis=(1, 2)).all()  # frames of non-empty slices only
    frame = seg.PerFrameFunctionalGroupsSequence[0]
    assert len(frame.PlanePositionSequence[0].ImagePositionPatient) == 3
    source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    assert source in {r.ReferencedSOPInstanceUID for r in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}


def test_msd_layout_is_what_prepare_makes_of_the_tcia_layout(download, prepared, tmp_path):
    write_phantom_cohort(
        str(tmp_path / "msd"), cases=10, layout="msd", matrix=48, slice_spacing=10.0, workers=1, progress=False
    )
    for name in ("HCC_001", "HCC_010"):
        for folder in ("imagesTr", "labelsTr"):
            direct = nib.load(tmp_path / "msd" / folder / f"{name}.nii.gz")
            through = nib.load(prepared / folder / f"{name}.nii.gz")
            np.testing.assert_array_equal(np.asarray(direct.dataobj), np.asarray(through.dataobj))
            np.testing.assert_allclose(direct.affine, through.affine, atol=1e-4)
    listed = json.loads((tmp_path / "msd" / "dataset.json").read_text())["training"]
    assert len(listed) == 10
    lines = {line.split(",")[0]: line for line in (tmp_path / "msd" / "clinical.csv").read_text().splitlines()}
    kept = (prepared / "clinical.csv").read_text().splitlines()
    assert all(lines[line.split(",")[0]] == line for line in kept)


def test_patient_of_the_size_of_real_ct_is_drawn_on_the_same_anatomy():
    small, large = make_phantom(2, options=TINY), make_phantom(2, options=replace(TINY, matrix=96))
    ml = [float((p.label == 1).sum() * np.prod(p.grid.spacing)) / 1000 for p in (small, large)]
    assert ml[0] == pytest.approx(ml[1], rel=0.08)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layout": "nnunet"}, "layout is 'nnunet'"),
        ({"cases": 0}, "cases is 0"),
        ({"matrix": 16}, "at least 32"),
        ({"slice_spacing": -1}, "slice_spacing is -1"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_bad_options(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        write_phantom_cohort(str(tmp_path / "out"), progress=False, **options)


def test_refuses_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="not an empty folder"):
        write_phantom_cohort(str(tmp_path), cases=1, progress=False)
