"""Label maps as DICOM segmentations and back: nothing may change on the way, whatever labels a map holds."""

from itertools import chain, combinations

import numpy as np
import pytest
from dicom_support import LABELS, by_dcmqi, dumped, reread, write_series
from pydicom.sr._concepts_dict import concepts
from scripts.prepare.phantom_dicom import write_seg as write_phantom_seg
from support import CONFIGS

from monailabel_app.lib.datastore.dicom_codes import ALIASES, MEANINGS, lab_of, meaning_of, rgb_of, value_of
from monailabel_app.lib.datastore.dicom_seg import Origin, read_image, read_seg, write_seg

SUBSETS = list(chain.from_iterable(combinations(LABELS.values(), n) for n in range(len(LABELS) + 1)))
MADE = Origin("demo", "3", corrected=True, creator="Reader^A")


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return tmp_path_factory.mktemp("dicom") / "series"


@pytest.fixture(scope="module")
def phantom(series):
    return write_series(series)[0]


@pytest.fixture(scope="module")
def image(series, phantom):
    return read_image(series)


@pytest.fixture(scope="module")
def label(phantom):
    """The phantom's label, all four classes of which reach its first and last slice or its corner."""
    label = phantom.label.copy()
    label[0, 0, 0], label[-1, -1, -1], label[0, -1, 0], label[-1, 0, -1] = 1, 2, 3, 4
    return label


def test_series_is_read_as_it_was_written(phantom, image):
    np.testing.assert_array_equal(np.asarray(image.dataobj), phantom.image)
    np.testing.assert_allclose(image.affine, phantom.geometry.affine(), atol=1e-4)
    assert image.get_data_dtype() == np.int16


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "+".join(map(str, subset)) or "empty")
def test_round_trip_of_every_subset(subset, series, image, label, tmp_path):
    voxels = np.where(np.isin(label, subset), label, 0).astype(np.uint8)
    item = reread(write_seg(voxels, series, LABELS, MADE), tmp_path)
    back = read_seg(next(tmp_path.glob("*.dcm")), series, image, LABELS)
    np.testing.assert_array_equal(np.asarray(back.dataobj), voxels)
    np.testing.assert_array_equal(back.affine, image.affine)
    assert [segment.SegmentLabel for segment in item.SegmentSequence] == list(LABELS)
    for segment in item.SegmentSequence:
        meaning = meaning_of(segment.SegmentLabel)
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == meaning.kind.value
        assert rgb_of(list(segment.RecommendedDisplayCIELabValue)) == meaning.colour
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("SEMIAUTOMATIC", "nny-net demo")
    assert item.SeriesDescription == "nny-net corrected label (demo, version 3)"
    assert item.PatientID == "HCC_001"


@pytest.mark.parametrize("subset", SUBSETS[1:], ids=lambda subset: "+".join(map(str, subset)))
def test_dcmqi_reads_the_same(subset, series, image, label, tmp_path):
    """Every voxel, name and colour, by a reader that shares no code with what wrote the file."""
    voxels = np.where(np.isin(label, subset), label, 0).astype(np.uint8)
    reread(write_seg(voxels, series, LABELS, MADE), tmp_path)
    found, told = by_dcmqi(next(tmp_path.glob("*.dcm")), tmp_path / "out", image)
    np.testing.assert_array_equal(found, voxels)
    names = {value: name for name, value in LABELS.items()}
    for number in subset:
        assert told[number]["SegmentLabel"] == names[number]
        colour = told[number]["recommendedDisplayRGBValue"]
        assert np.abs(np.subtract(colour, meaning_of(names[number]).colour)).max() <= 1


def test_dcmtk_reads_codes_and_names(series, label, tmp_path):
    reread(write_seg(label, series, LABELS, MADE), tmp_path)
    file = next(tmp_path.glob("*.dcm"))
    assert dumped(file, "SegmentLabel") == list(LABELS)
    assert dumped(file, "SeriesDescription") == ["nny-net corrected label (demo, version 3)"]
    found = dumped(file, "CodeValue")
    for code in ("10200004", "4147007", "32764006", "7832008"):
        assert code in found


def test_mask_of_a_network_says_so(series, label, tmp_path):
    item = reread(write_seg(label, series, LABELS, Origin("demo", "0", corrected=False)), tmp_path)
    assert item.SeriesDescription == "nny-net mask (demo, version 0)"
    assert {segment.SegmentAlgorithmType for segment in item.SegmentSequence} == {"AUTOMATIC"}


def test_segmentation_of_others_is_read_by_name(series, phantom, image, tmp_path):
    """Like the one of the real collection: cropped to few slices, its liver holds the tumour, other segment names."""
    headers = write_series(tmp_path / "again")  # the same series: the same seed gives the same bytes
    assert headers[1] == str(read_headers(series)[0].SeriesInstanceUID)
    masks = {value: phantom.label == value for value in LABELS.values()}
    masks[1] = masks[1] | masks[2]
    write_phantom_seg(tmp_path / "seg.dcm", masks, phantom.geometry, read_headers(series), series="other")
    back = read_seg(tmp_path / "seg.dcm", series, image, LABELS)
    np.testing.assert_array_equal(np.asarray(back.dataobj), phantom.label)
    with pytest.raises(ValueError, match="none of left atrium"):
        read_seg(tmp_path / "seg.dcm", series, image, {"left atrium": 1})


def read_headers(series):
    import pydicom

    found = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(series.iterdir())]
    return sorted(found, key=lambda item: float(item.SliceLocation))


def test_wrong_grid_and_values_are_refused(series, label):
    with pytest.raises(ValueError, match=r"shape \(32, 32, 5\), its series \(32, 32, 12\)"):
        write_seg(label[..., :5], series, LABELS, MADE)
    with pytest.raises(ValueError, match="holds 9"):
        write_seg(np.full_like(label, 9), series, LABELS, MADE)


def test_codes_are_those_of_snomed():
    known = {(code, found[0].lower()) for entries in concepts["SCT"].values() for code, found in entries.items()}
    for name, meaning in MEANINGS.items():
        assert (meaning.kind.value, meaning.kind.meaning.lower()) in known, name
        assert meaning.kind.scheme_designator == "SCT"
    assert all(target in MEANINGS for target in ALIASES.values())
    assert len({meaning.kind.value for meaning in MEANINGS.values()}) == len(MEANINGS)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("dataset_*.yaml")), ids=lambda file: file.stem)
def test_every_label_set_of_ours_is_coded(file):
    import yaml

    names = yaml.safe_load(file.read_text()).get("labels", list(LABELS))[1:]
    for name in set(names) - {"portal and splenic veins", "prostate/uterus"}:  # two organs in one: there is no concept
        assert meaning_of(name).kind.scheme_designator == "SCT", name
    coded = [meaning_of(name) for name in names]
    assert (
        len({(meaning.kind.value, meaning.side) for meaning in coded}) == len({m.colour for m in coded}) == len(names)
    )


def test_sides_are_told_apart(series, label, image, tmp_path):
    labels = {"right kidney": 1, "left kidney": 2, "left atrium": 3, "left adrenal gland": 4}
    item = reread(write_seg(label, series, labels, MADE), tmp_path)
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in item.SegmentSequence]
    assert [kind.CodeMeaning for kind in kinds] == ["Kidney", "Kidney", "Left atrium", "Adrenal gland"]
    sides = [kind.get("SegmentedPropertyTypeModifierCodeSequence", []) for kind in kinds]
    assert [[code.CodeMeaning for code in side] for side in sides] == [["Right"], ["Left"], [], ["Left"]]
    back = read_seg(next(tmp_path.glob("*.dcm")), series, image, labels)
    np.testing.assert_array_equal(np.asarray(back.dataobj), label)


def test_label_without_a_code_gets_one_of_its_own():
    first, second = meaning_of("Gizmo"), meaning_of("widget")
    assert first.kind.scheme_designator == second.kind.scheme_designator == "99NNY"
    assert first.kind.meaning == "Gizmo"
    assert first.kind.value != second.kind.value
    assert value_of(("Tumor",), LABELS) == 2
    assert value_of(("Portal vein", "x"), LABELS) == 3
    assert value_of(("kidney",), LABELS) is None


def test_colours_survive():
    for meaning in MEANINGS.values():
        assert rgb_of(lab_of(meaning.colour)) == meaning.colour
