"""DICOM series with SEG or RTSTRUCT: voxel for voxel what was drawn, on tilted and anisotropic grids."""

import re

import nibabel as nib
import numpy as np
import pydicom
import pytest
from import_support import OPTIONS, listed
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scripts.datalists import check_cases, read_datalist
from scripts.prepare.dicom_cases import parse_classes, prepare_dicom
from scripts.prepare.phantom_dicom import Coding, Geometry, write_ct_series, write_seg
from skimage.measure import find_contours

SHAPE = (28, 24, 7)  # columns, rows, slices


def oblique():
    """A grid tilted about all axes, with voxels of 0.8 x 1.3 x 4 mm."""
    axes = np.linalg.qr(np.array([[1, 0.2, 0.1], [-0.15, 1, 0.25], [0.05, -0.2, 1]]))[0]
    axes = axes * np.sign(np.diag(axes))
    row, column = axes[:, 0], axes[:, 1]
    return Geometry((-31.0, 17.5, 240.0), tuple(row), tuple(column), (0.8, 1.3), 4.0)


def drawn(seed=0):
    """Two overlapping structures: one in two parts, one of them with a hole; and another one."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    ring = ((x - 9 - seed) ** 2 + (y - 11) ** 2 < 36) & ((x - 9 - seed) ** 2 + (y - 11) ** 2 > 6) & (z > 0) & (z < 5)
    island = (abs(x - 23) < 3) & (abs(y - 6) < 4) & (z == 3)
    lesion = (x - 12 - seed) ** 2 / 16 + (y - 14) ** 2 / 9 + (z - 3) ** 2 / 3 < 1
    return {"Liver": ring | island, "GTV Tumour": lesion}


def series(folder, patient, geometry, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(-100, 200, SHAPE).astype(np.int16)
    headers = write_ct_series(
        folder,
        image,
        geometry,
        patient_id=patient,
        study=f"study {patient}",
        series=f"series {patient}",
        number=4,
        description="portal venous",
        date="20200101",
        coding=Coding(head_first=bool(seed % 2)),
        rng=rng,
    )
    return image, headers


def item(**values):
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def write_structures(path, masks, geometry, headers):
    """Contours halfway between the voxels inside and outside, as a planning system would export them."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = RTStructureSetStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.is_little_endian, made.is_implicit_VR = True, False
    made.SOPClassUID, made.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    made.PatientID, made.Modality, made.StudyDate = headers[0].PatientID, "RTSTRUCT", "20200102"
    made.StudyInstanceUID, made.SeriesInstanceUID = headers[0].StudyInstanceUID, generate_uid()
    made.StructureSetROISequence = Sequence(
        [item(ROINumber=n, ROIName=name, ROIGenerationAlgorithm="MANUAL") for n, name in enumerate(masks, 5)]
    )
    reference = item(SeriesInstanceUID=headers[0].SeriesInstanceUID)
    study = item(RTReferencedSeriesSequence=Sequence([reference]))
    frame = item(FrameOfReferenceUID=headers[0].FrameOfReferenceUID, RTReferencedStudySequence=Sequence([study]))
    made.ReferencedFrameOfReferenceSequence = Sequence([frame])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine()
    regions = []
    for n, mask in enumerate(masks.values(), 5):
        contours = []
        for k in range(mask.shape[2]):
            for line in find_contours(np.pad(mask[:, :, k], 1).astype(float), 0.5):
                index = np.column_stack([line[:-1] - 1, np.full(len(line) - 1, k)])  # closed without its last point
                points = nib.affines.apply_affine(lps, index)
                source = item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=headers[k].SOPInstanceUID)
                contours.append(
                    item(
                        ContourImageSequence=Sequence([source]),
                        ContourGeometricType="CLOSED_PLANAR",
                        NumberOfContourPoints=len(points),
                        ContourData=[f"{v:.5f}" for v in points.ravel()],
                    )
                )
        regions.append(item(ReferencedROINumber=n, ContourSequence=Sequence(contours)))
    regions[0].ContourSequence.append(
        item(ContourGeometricType="POINT", NumberOfContourPoints=1, ContourData=["0", "0", "0"])
    )
    made.ROIContourSequence = Sequence(regions)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, write_like_original=False)


@pytest.fixture
def study(tmp_path):
    """Two patients with an RTSTRUCT, one of them on a grid along the axes, and one with a SEG."""
    root, truth = tmp_path / "raw", {}
    straight = Geometry((-20.0, -30.0, 5.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.9, 0.9), 2.5)
    for n, (patient, geometry) in enumerate({"P1": oblique(), "P2": straight, "P3": oblique()}.items()):
        masks = drawn(n)
        image, headers = series(root / "all" / f"x{n}", patient, geometry, n)
        if patient == "P3":
            write_seg(
                root / "z" / "seg.dcm", dict(zip((1, 2), masks.values(), strict=True)), geometry, headers, series="s"
            )
        else:
            write_structures(root / "z" / f"rs{n}.dcm", masks, geometry, headers)
        truth[patient] = image, masks, geometry
    return root, truth


CLASSES = "liver, tumour=tumou?r|mass"


def check(output, patient, truth):
    image, masks, geometry = truth[patient]
    liver, tumour = masks.values()
    written, label = (nib.load(output / part / f"{patient}.nii.gz") for part in ("imagesTr", "labelsTr"))
    np.testing.assert_array_equal(np.asarray(written.dataobj), image)
    np.testing.assert_array_equal(np.asarray(label.dataobj), np.where(tumour, 2, liver))  # the later class wins
    for nifti in (written, label):
        np.testing.assert_allclose(nifti.affine, geometry.affine(), atol=1e-4)


def test_contours_and_segments_come_back_voxel_for_voxel(study, tmp_path):
    root, truth = study
    done = prepare_dicom(str(root), str(tmp_path / "out"), labels=CLASSES, folds=3, **OPTIONS)
    assert (done["kept"], done["broken"]) == (3, {})
    for patient in truth:
        check(tmp_path / "out", patient, truth)
    check_cases(read_datalist(tmp_path / "out"), ["background", "liver", "tumour"])
    assert {case["fold"] for case in listed(tmp_path / "out").values()} == {0, 1, 2}


def test_classes_by_default_are_the_names_that_occur(study, tmp_path):
    root, _ = study
    (root / "z" / "seg.dcm").unlink()
    prepare_dicom(str(root), str(tmp_path / "out"), **OPTIONS)
    labels = nib.load(tmp_path / "out" / "labelsTr" / "P1.nii.gz")
    assert '"1": "GTV Tumour"' in (tmp_path / "out" / "dataset.json").read_text()
    assert set(np.unique(np.asarray(labels.dataobj))) == {0, 1, 2}


def edit(path, change):
    content = pydicom.dcmread(path)
    change(content)
    content.save_as(path)


def moved(points, by):
    return [f"{float(v) + (by if i % 3 == 2 else 0):.5f}" for i, v in enumerate(points)]


def between_the_slices(root):
    def change(content):
        contour = content.ROIContourSequence[1].ContourSequence[0]
        contour.ContourData = moved(contour.ContourData, 1.25)

    edit(root / "z" / "rs1.dcm", change)


def beside_the_scan(root):
    def change(content):
        contour = content.ROIContourSequence[1].ContourSequence[0]
        contour.ContourData = moved(contour.ContourData, 25.0)

    edit(root / "z" / "rs1.dcm", change)


def cut_off(root):
    path = root / "z" / "rs1.dcm"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def series_not_downloaded(root):
    for path in (root / "all" / "x1").iterdir():
        path.unlink()


def slice_cut_off(root):
    path = max((root / "all" / "x1").iterdir())
    path.write_bytes(path.read_bytes()[:300])


def odd_coordinates(root):
    edit(
        root / "z" / "rs1.dcm", lambda c: setattr(c.ROIContourSequence[0].ContourSequence[0], "ContourData", ["1"] * 7)
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (between_the_slices, r"rs1\.dcm: contour 1 of 'GTV Tumour' lies on slices \d\.50 to \d\.50, not on one"),
        (beside_the_scan, r"rs1\.dcm: contour 1 of 'GTV Tumour' lies on slice 1\d, but the series has 0 to 6"),
        (cut_off, r"rs1\.dcm"),
        (series_not_downloaded, r"rs1\.dcm refers to series \S+, which is not among the 2 found"),
        (slice_cut_off, r"x1/\S+\.dcm, in the folder of the series, cannot be read"),
        (odd_coordinates, r"rs1\.dcm: contour 1 of 'Liver' has 7 coordinates; expected three for each"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_object_is_reported_and_the_rest_imported(study, tmp_path, damage, reason):
    root, truth = study
    damage(root)
    done = prepare_dicom(str(root), str(tmp_path / "out"), labels=CLASSES, **OPTIONS)
    assert len(done["broken"]) == 1
    ((case, said),) = done["broken"].items()
    assert case.startswith("P2_rs1" if damage is series_not_downloaded else "P2")
    assert re.search(reason, said), said
    for patient in ("P1", "P3"):
        check(tmp_path / "out", patient, truth)
    assert {p.name for p in (tmp_path / "out").rglob("P2*")} == {f"{case}.json"}


def segmentation_cut_off(root):
    path = root / "z" / "seg.dcm"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def segmentation_beside_the_scan(root):
    def change(content):
        for frame in content.PerFrameFunctionalGroupsSequence:
            place = frame.PlanePositionSequence[0]
            place.ImagePositionPatient = [f"{float(v) + 500:.5f}" for v in place.ImagePositionPatient]

    edit(root / "z" / "seg.dcm", change)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(segmentation_cut_off, r"seg\.dcm"), (segmentation_beside_the_scan, r"seg\.dcm")],
    ids=["cut off", "beside the scan"],
)
def test_broken_segmentation_is_reported_and_the_rest_imported(study, tmp_path, damage, reason):
    root, truth = study
    damage(root)
    done = prepare_dicom(str(root), str(tmp_path / "out"), labels=CLASSES, **OPTIONS)
    ((case, said),) = done["broken"].items()
    assert case.startswith("P3")
    assert re.search(reason, said), said
    for patient in ("P1", "P2"):
        check(tmp_path / "out", patient, truth)
    assert {p.name for p in (tmp_path / "out").rglob("P3*")} == {f"{case}.json"}


def test_folder_without_drawings_and_wrong_expressions(study, tmp_path):
    root, _ = study
    with pytest.raises(FileNotFoundError, match="holds no DICOM SEG and no RTSTRUCT among 7 files"):
        prepare_dicom(str(root / "all" / "x0"), str(tmp_path / "out"), **OPTIONS)
    with pytest.raises(ValueError, match=r"--labels: '\(' of 'liver' is no regular expression"):
        parse_classes("liver=(")
    assert parse_classes(["a", "b=x|y"]) == (("a", "a"), ("b", "x|y"))
