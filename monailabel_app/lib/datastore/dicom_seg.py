"""Label maps as DICOM segmentation objects (SEG) and back, exact in values, names, colours and geometry."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
from monai.transforms import LoadImage
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from scripts.dicom import LPS_TO_RAS, CaseError, Volume, read_header
from scripts.dicom_series import read_series
from scripts.prepare.dicom_seg import read_segmentation, segment_masks

from monailabel_app.lib.datastore.dicom_codes import lab_of, meaning_of, value_of

# highdicom says so at each label of a patient whose name has one part only, as those of anonymous scans have
warnings.filterwarnings("ignore", message="The string .* is unlikely to represent the intended person name")
MAKER = "nny-net"
SERIES_NUMBER = 300  # SEG series are listed behind the scans
TOLERANCE = 1e-2  # mm, between the headers' geometry and the volume's


@dataclass(frozen=True)
class Origin:
    """Who made a label: the network (``model``, ``version``), and whether a person corrected it (``creator``)."""

    model: str
    version: str
    corrected: bool
    creator: str = ""

    @property
    def description(self) -> str:
        """The series description that viewers list."""
        kind = "corrected label" if self.corrected else "mask"
        return f"{MAKER} {kind} ({self.model}, version {self.version})"[:64]


def read_image(folder: Path) -> nib.Nifti1Image:
    """Read a DICOM series as inference reads it.

    Args:
        folder: the slices of one CT, MR or PET series.

    Returns:
        The volume (columns, rows, slices), int16 where that is exact, else float32.

    Raises:
        ValueError: damaged files, several series, or no regular volume.
    """
    slices = read_series(folder)
    if not slices:
        raise ValueError(f"{folder} holds no CT, MR or PET slices.")
    loaded = LoadImage(image_only=True)(str(folder))
    array, affine = loaded.array, np.asarray(loaded.affine, float)
    for index, header in ((0, slices[0]), (len(slices) - 1, slices[-1])):
        there = (LPS_TO_RAS @ affine @ [0, 0, index, 1])[:3]
        if array.shape != (*reversed(header.size), len(slices)) or np.abs(there - header.position).max() > TOLERANCE:
            raise ValueError(
                f"{folder}: slice {index} was read at {np.round(there, 3).tolist()} mm, but {header.path.name} lies at "
                f"{header.position}. Convert the series to NIfTI."
            )
    whole = np.rint(array)
    exact = np.array_equal(whole, array) and np.abs(whole).max(initial=0) < 2**15
    return nib.Nifti1Image(whole.astype(np.int16) if exact else array.astype(np.float32), affine)


def write_seg(label: np.ndarray, series: Path, values: Mapping[str, int], origin: Origin) -> Dataset:
    """Make a SEG of a label map.

    Every class is described, also those that the label does not hold, so that the segment numbers are the label's
    values for whoever reads it. Slices of a class that are empty are left out.

    Args:
        label: (columns, rows, slices) on the grid of the series, whole numbers.
        series: folder of the series.
        values: value by name of the classes.
        origin: who made it.

    Returns:
        The object, with UIDs of its own, in the patient's study.

    Raises:
        ValueError: another grid than the series', or values that are no class.
    """
    headers = read_series(series)
    shape = (*reversed(headers[0].size), len(headers)) if headers else ()
    if label.shape != shape:
        raise ValueError(f"The label has shape {label.shape}, its series {shape}.")
    names = _numbered(values, label)
    pixels = np.ascontiguousarray(label.transpose(2, 1, 0)).astype(np.uint8)  # (slices, rows, columns)
    source = [pydicom.dcmread(header.path, stop_before_pixels=True) for header in headers]
    if not pixels.any():  # an empty label still needs a frame: one slice says it all
        pixels, source = pixels[:1], source[:1]
    item = hd.seg.Segmentation(
        source_images=source,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(number, name, origin) for number, name in names.items()],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=origin.model,
        software_versions=f"{MAKER} {origin.version}"[:64],
        device_serial_number="0",
        content_description=origin.description,
        content_creator_name=origin.creator or None,
        content_label="SEGMENTATION",
        omit_empty_frames=bool(pixels.any()),
    )
    item.SeriesDescription = origin.description
    item.BodyPartExamined = source[0].get("BodyPartExamined", "")
    return item


def read_seg(file: Path, series: Path, reference: nib.Nifti1Image, values: Mapping[str, int]) -> nib.Nifti1Image:
    """Put a SEG, ours or another's, on the full grid of its image.

    Args:
        file: the SEG.
        series: folder of the image's series.
        reference: the image, for its grid.
        values: value by name of our classes; segments that are none of them are left out. Where segments overlap, the
            smaller one is on top.

    Returns:
        The label map, uint8 (uint16 where values need it), on the image's grid.

    Raises:
        ValueError: not readable, not binary, on another grid, or none of the segments is ours.
    """
    found = read_segmentation(read_header(file))
    known = {number: value_of(names, values) for number, names in found.names.items()}
    if all(value is None for value in known.values()):
        listed = ", ".join(names[0] for names in found.names.values() if names)
        raise CaseError(f"The segmentation holds {listed or 'nothing'}; none of {', '.join(values)}.")
    grid = np.broadcast_to(np.int16(0), reference.shape[:3])
    volume = Volume(grid, LPS_TO_RAS @ reference.affine, tuple(read_series(series)))
    masks = {number: mask for number, mask in segment_masks(found, volume).items() if known[number] is not None}
    label = np.zeros(reference.shape[:3], np.uint8 if max(values.values()) < 256 else np.uint16)
    for number in sorted(masks, key=lambda n: int(masks[n].sum()), reverse=True):
        label[masks[number]] = known[number]
    return nib.Nifti1Image(label, reference.affine)


def segment_names(item: Dataset) -> list[tuple[str, ...]]:
    """What the segments of a SEG are called: label, description, coded type; from its metadata alone."""
    names = []
    for segment in item.get("SegmentSequence") or []:
        coded = [str(code.get("CodeMeaning", "")) for code in segment.get("SegmentedPropertyTypeCodeSequence") or []]
        names.append((str(segment.get("SegmentLabel", "")), str(segment.get("SegmentDescription", "")), *coded))
    return names


def is_our_mask(item: Dataset) -> bool:
    """Whether a SEG is a network's mask that this app wrote and nobody corrected; from its metadata alone."""
    kinds = {str(segment.get("SegmentAlgorithmType", "")) for segment in item.get("SegmentSequence") or []}
    return str(item.get("Manufacturer", "")) == MAKER and kinds == {"AUTOMATIC"}


def _numbered(values: Mapping[str, int], label: np.ndarray) -> dict[int, str]:
    """Name by segment number, from 1 without gaps, as DICOM wants it."""
    names: dict[int, str] = {}
    for name, value in values.items():
        names.setdefault(value, name)
    wrong = sorted(set(np.unique(label).tolist()) - {0, *names})
    if wrong:
        raise ValueError(f"The label holds {wrong[0]}, which is none of the classes {names}.")
    return {number: names.get(number, f"class {number}") for number in range(1, max(names) + 1)}


def _describe(number: int, name: str, origin: Origin) -> hd.seg.SegmentDescription:
    meaning = meaning_of(name)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"{MAKER} {origin.model}"[:64],
        version=origin.version,
        family=codes.DCM.ArtificialIntelligence,
    )
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=meaning.category,
        segmented_property_type=meaning.kind,
        algorithm_type="SEMIAUTOMATIC" if origin.corrected else "AUTOMATIC",
        algorithm_identification=algorithm,
    )
    if meaning.side is not None:
        side = hd.sr.CodedConcept.from_code(meaning.side)
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    described.RecommendedDisplayCIELabValue = lab_of(meaning.colour)
    return described
