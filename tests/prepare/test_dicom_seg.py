import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scripts.dicom import CaseError, index_files, read_header, read_volume
from scripts.prepare.dicom_seg import read_segmentation, segment_masks
from scripts.prepare.phantom_dicom import SEGMENTS, Coding, Geometry, write_ct_series, write_seg

GEOMETRY = Geometry((-60.5, -81.25, -333.5), (1.0, 0.0, 0.0), (0.0, 0.96, 0.28), (2.5, 3.0), 4.0)
SHAPE = (12, 9, 6)  # columns, rows, slices


@pytest.fixture
def case(tmp_path):
    """A CT, its overlapping truth, and the path of its segmentation."""
    rng = np.random.default_rng(0)
    names = {"patient_id": "HCC_001", "study": "s", "series": "a", "number": 1, "description": "CT", "date": "19991130"}
    headers = write_ct_series(tmp_path / "ct", np.zeros(SHAPE, np.int16), GEOMETRY, coding=Coding(), rng=rng, **names)
    truth = {value: rng.random(SHAPE) < 0.3 for value in (1, 2, 4)}
    truth[2][:, :, [0, 3]] = False  # empty slices have no frame
    write_seg(tmp_path / "seg" / "1-1.dcm", truth, GEOMETRY, headers, series="seg")
    (slices,) = index_files((tmp_path / "ct").glob("*")).series.values()
    return read_volume(slices), truth, tmp_path / "seg" / "1-1.dcm"


def masks_of(path, volume):
    return segment_masks(read_segmentation(read_header(path)), volume)


def edited(path, change):
    item = pydicom.dcmread(path)
    change(item)
    item.save_as(path)
    return path


def repack(item, frames):
    bits = np.packbits(np.ascontiguousarray(frames, np.uint8).ravel(), bitorder="little").tobytes()
    item.Rows, item.Columns = frames.shape[1:]
    item.PixelData = bits + b"\0" * (len(bits) % 2)


def test_frames_come_back_as_drawn(case):
    volume, truth, path = case
    masks = masks_of(path, volume)
    assert sorted(masks) == [1, 2, 3]  # numbered one after the other, whatever the label values
    for mask, expected in zip(masks.values(), truth.values(), strict=True):
        np.testing.assert_array_equal(mask, expected)
    segmentation = read_segmentation(read_header(path))
    assert segmentation.names[2] == ("Mass", "Tumor mass", "Mass")
    assert segmentation.series == (volume.headers[0].series_uid,)
    assert segmentation.instances <= {h.sop_uid for h in volume.headers}


def test_frames_in_any_order(case):
    volume, truth, path = case

    def shuffle(item):
        order = np.random.default_rng(3).permutation(int(item.NumberOfFrames))
        repack(item, item.pixel_array[order])
        item.PerFrameFunctionalGroupsSequence = pydicom.Sequence(
            [item.PerFrameFunctionalGroupsSequence[i] for i in order]
        )

    np.testing.assert_array_equal(masks_of(edited(path, shuffle), volume)[1], truth[1])


def test_flipped_frames_are_turned_back(case):
    volume, truth, path = case

    def flip(item):
        repack(item, item.pixel_array[:, ::-1, ::-1])
        orientation = item.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        cosines = np.array(orientation.ImageOrientationPatient, float)
        orientation.ImageOrientationPatient = list(-cosines)
        for frame in item.PerFrameFunctionalGroupsSequence:
            plane = frame.PlanePositionSequence[0]
            corner = np.array(plane.ImagePositionPatient, float) + cosines[:3] * 2.5 * 11 + cosines[3:] * 3.0 * 8
            plane.ImagePositionPatient = [f"{v:.6f}" for v in corner]

    np.testing.assert_array_equal(masks_of(edited(path, flip), volume)[1], truth[1])


def test_transposed_frames_are_turned_back(case):
    volume, truth, path = case

    def transpose(item):
        repack(item, item.pixel_array.transpose(0, 2, 1))
        shared = item.SharedFunctionalGroupsSequence[0]
        cosines = list(shared.PlaneOrientationSequence[0].ImageOrientationPatient)
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = cosines[3:] + cosines[:3]
        shared.PixelMeasuresSequence[0].PixelSpacing = ["2.5", "3.0"]

    np.testing.assert_array_equal(masks_of(edited(path, transpose), volume)[3], truth[4])


def test_cropped_frames_are_put_in_place(case):
    volume, truth, path = case

    def crop(item):
        repack(item, item.pixel_array[:, 2:7, 3:10])
        for frame in item.PerFrameFunctionalGroupsSequence:
            plane = frame.PlanePositionSequence[0]
            corner = np.array(plane.ImagePositionPatient, float) + np.array([2.5 * 3, 3.0 * 2 * 0.96, 3.0 * 2 * 0.28])
            plane.ImagePositionPatient = [f"{v:.6f}" for v in corner]

    expected = np.zeros(SHAPE, bool)
    expected[3:10, 2:7] = truth[1][3:10, 2:7]
    np.testing.assert_array_equal(masks_of(edited(path, crop), volume)[1], expected)


def test_frames_without_position_are_placed_by_their_source_slice(case):
    volume, truth, path = case

    def strip(item):
        for frame in item.PerFrameFunctionalGroupsSequence:
            del frame.PlanePositionSequence

    np.testing.assert_array_equal(masks_of(edited(path, strip), volume)[1], truth[1])


def dcmqi(name):
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return path or pytest.skip(f"{name} of dcmqi is not installed")


def test_what_dcmqi_writes_is_read(case, tmp_path):
    program = dcmqi("itkimage2segimage")
    volume, truth, path = case
    label = np.zeros(SHAPE, np.uint8)
    for value, mask in truth.items():
        label[mask] = value
    nib.save(nib.Nifti1Image(label, volume.affine), tmp_path / "label.nii.gz")
    attributes = []
    for value in truth:
        name, description, *codes = SEGMENTS[value]
        category, kind = ({"CodeValue": c, "CodingSchemeDesignator": "SCT", "CodeMeaning": m} for c, m in codes)
        attributes.append(
            {
                "labelID": value,
                "SegmentLabel": name,
                "SegmentDescription": description,
                "SegmentAlgorithmType": "MANUAL",
                "SegmentedPropertyCategoryCodeSequence": category,
                "SegmentedPropertyTypeCodeSequence": kind,
            }
        )
    about = {
        "ContentCreatorName": "x",
        "ClinicalTrialSeriesID": "1",
        "ClinicalTrialTimePointID": "1",
        "SeriesNumber": "300",
        "SeriesDescription": "Segmentation",
        "InstanceNumber": "1",
        "segmentAttributes": [attributes],
    }
    (tmp_path / "about.json").write_text(json.dumps(about))
    subprocess.run(
        [
            program,
            "--inputImageList",
            tmp_path / "label.nii.gz",
            "--inputDICOMDirectory",
            tmp_path / "ct",
            "--inputMetadata",
            tmp_path / "about.json",
            "--outputDICOM",
            path,
        ],
        check=True,
        capture_output=True,
    )
    masks = masks_of(path, volume)
    names = read_segmentation(read_header(path)).names
    for value in truth:
        (number,) = (n for n, texts in names.items() if texts[0] == SEGMENTS[value][0])
        np.testing.assert_array_equal(masks[number], label == value)


def test_what_we_write_is_read_by_dcmqi(case, tmp_path):
    program = dcmqi("segimage2itkimage")
    volume, truth, path = case
    subprocess.run(
        [program, "--inputDICOM", path, "--outputDirectory", tmp_path, "-t", "nii"], check=True, capture_output=True
    )
    for number, mask in enumerate(truth.values(), 1):
        read = nib.load(tmp_path / f"{number}.nii.gz")
        assert (np.asarray(read.dataobj) > 0).sum() == mask.sum()
        corner = np.argwhere(mask).mean(axis=0)
        found = np.argwhere(np.asarray(read.dataobj) > 0).mean(axis=0)
        np.testing.assert_allclose(read.affine @ [*found, 1], volume.affine @ [*corner, 1], atol=1e-3)


def move(frame, by):
    plane = frame.PlanePositionSequence[0]
    plane.ImagePositionPatient = [f"{float(v) + d:.6f}" for v, d in zip(plane.ImagePositionPatient, by, strict=True)]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda item: move(item.PerFrameFunctionalGroupsSequence[2], (0, -0.56, 1.92)),
            r"frame 3 of \d+ .*it fits no slice of the CT series",
        ),
        (lambda item: move(item.PerFrameFunctionalGroupsSequence[0], (0, 11.2, -38.4)), "slice -10.00 of 0 to 5"),
        (lambda item: move(item.PerFrameFunctionalGroupsSequence[1], (0.8, 0, 0)), "0.32 pixels beside"),
        (
            lambda item: setattr(
                item.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [1.5, 1.25]
            ),
            "another grid than the CT",
        ),
        (
            lambda item: delattr(item.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence"),
            "no PlaneOrientation",
        ),
        (lambda item: setattr(item, "SegmentSequence", item.SegmentSequence[:2]), "segment 3, which .* not describe"),
        (lambda item: setattr(item, "SegmentationType", "FRACTIONAL"), "type 'FRACTIONAL'; expected BINARY"),
        (lambda item: setattr(item, "PixelData", item.PixelData[:20]), "pixels of the segmentation seg/1-1.dcm cannot"),
        (lambda item: delattr(item, "PerFrameFunctionalGroupsSequence"), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(case, change, match):
    volume, _, path = case
    with pytest.raises(CaseError, match=match):
        masks_of(edited(path, change), volume)


def test_marks_beyond_the_edge_are_refused(case):
    volume, _, path = case

    def slide(item):
        for frame in item.PerFrameFunctionalGroupsSequence:
            move(frame, (-5.0, 0, 0))

    with pytest.raises(CaseError, match="beyond the edge"):
        masks_of(edited(path, slide), volume)
