"""Which series, segmentation and segments are taken."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from prepare_support import edit, files_of, load, prepare, warnings_of
from scripts.prepare.hcc_tace_case import class_of, merge_segments
from scripts.prepare.phantom import PhantomOptions, make_phantom

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
