"""Writes a phantom as a DICOM study: a CT series, and a segmentation object (SEG) that refers to it.

The files look like the anonymised ones of the archive: explicit VR little endian, NBIA file names that are not in slice
order, stored values signed or unsigned with a rescale intercept, slices acquired from the head or from the feet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage, generate_uid

_SCT = "SCT"
# label value -> (segment label, description, property category, property type), coded as in SNOMED CT
SEGMENTS = {
    1: ("Liver", "Liver", ("123037004", "Anatomical Structure"), ("10200004", "Liver")),
    2: ("Mass", "Tumor mass", ("49755003", "Morphologically Altered Structure"), ("4147007", "Mass")),
    3: ("Portal vein", "Portal vein", ("123037004", "Anatomical Structure"), ("32764006", "Portal vein")),
    4: ("Abdominal aorta", "Aorta", ("123037004", "Anatomical Structure"), ("7832008", "Abdominal aorta")),
}


@dataclass(frozen=True)
class Geometry:
    """Where a volume (columns, rows, slices) lies: DICOM position of its first voxel, cosines and spacing in mm."""

    origin: tuple[float, float, float]
    row_cosine: tuple[float, float, float]
    column_cosine: tuple[float, float, float]
    pixel_spacing: tuple[float, float]
    slice_spacing: float

    def position(self, k: int) -> np.ndarray:
        """Returns the position (x, y, z) in mm of the first voxel of slice ``k``."""
        normal = np.cross(self.row_cosine, self.column_cosine)
        return np.array(self.origin) + normal * self.slice_spacing * k

    def affine(self) -> np.ndarray:
        """Returns the 4x4 matrix from voxel indices (column, row, slice) to RAS millimetres, as NIfTI wants it."""
        matrix = np.eye(4)
        matrix[:3, 0] = np.array(self.row_cosine) * self.pixel_spacing[0]
        matrix[:3, 1] = np.array(self.column_cosine) * self.pixel_spacing[1]
        matrix[:3, 2] = np.cross(self.row_cosine, self.column_cosine) * self.slice_spacing
        matrix[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


@dataclass(frozen=True)
class Coding:
    """How a series is stored: signed or unsigned values, the rescale intercept, and whether it starts at the head."""

    signed: bool = True
    intercept: int = -1024
    head_first: bool = False


def write_ct_series(
    folder: str | Path,
    image: np.ndarray,
    geometry: Geometry,
    *,
    patient_id: str,
    study: str,
    series: str,
    number: int,
    description: str,
    date: str,
    coding: Coding,
    rng: np.random.Generator,
    acquisition: int = 1,
) -> list[Dataset]:
    """Writes one CT series.

    Args:
        folder: folder to write into, one file per slice.
        image: int16 (columns, rows, slices) in HU.
        geometry: where the volume lies.
        patient_id: PatientID.
        study: text that the StudyInstanceUID is made of; series with the same text share study and frame of reference.
        series: text that the SeriesInstanceUID is made of.
        number: SeriesNumber.
        description: SeriesDescription.
        date: StudyDate, ``YYYYMMDD``.
        coding: how the values are stored.
        rng: order of the file names.
        acquisition: AcquisitionNumber; a series may hold several acquisitions, written one call each.

    Returns:
        list: the headers of the slices in order of ``image``, without pixels, for :func:`write_seg`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = image.shape[2]
    names = rng.permutation(count) + 1
    headers: list[Dataset] = []
    for k in range(count):
        item = _instance(CTImageStorage, f"{series}.{acquisition}.{k}", patient_id, study, series, date)
        item.Modality, item.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        item.StudyDescription, item.SeriesDescription = "CT ABDOMEN", description
        item.BodyPartExamined, item.KVP, item.GantryDetectorTilt = "LIVER", "120.0", "0.0"
        item.PatientPosition, item.AcquisitionNumber = "FFS", str(acquisition)
        item.SeriesNumber = str(number)
        item.InstanceNumber = str((acquisition - 1) * count + (count - k if coding.head_first else k + 1))
        item.ImagePositionPatient = [_ds(v) for v in geometry.position(k)]
        item.ImageOrientationPatient = [_ds(v) for v in (*geometry.row_cosine, *geometry.column_cosine)]
        item.PixelSpacing = [_ds(geometry.pixel_spacing[1]), _ds(geometry.pixel_spacing[0])]  # between rows, columns
        item.SliceThickness = _ds(geometry.slice_spacing)
        item.SliceLocation = _ds(geometry.position(k)[2])
        item.Rows, item.Columns = image.shape[1], image.shape[0]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.PixelRepresentation = int(coding.signed)
        item.WindowCenter, item.WindowWidth = "40.0", "400.0"
        item.RescaleIntercept, item.RescaleSlope, item.RescaleType = str(coding.intercept), "1.0", "HU"
        stored = image[:, :, k].T.astype(np.int32) - coding.intercept  # (rows, columns)
        item.PixelData = np.ascontiguousarray(stored.astype("<i2" if coding.signed else "<u2")).tobytes()
        item["PixelData"].VR = "OW"
        item.save_as(folder / f"{acquisition}-{names[k]:02d}.dcm", write_like_original=False)
        del item.PixelData
        headers.append(item)
    return headers


def write_seg(
    path: str | Path,
    segments: dict[int, np.ndarray],
    geometry: Geometry,
    headers: list[Dataset],
    *,
    series: str,
    number: int = 300,
    description: str = "Segmentation",
) -> None:
    """Writes a binary DICOM SEG with frames for the non-empty slices only.

    Args:
        path: the file; its folder is made.
        segments: label value (a key of ``SEGMENTS``) -> bool (columns, rows, slices); they may overlap.
        geometry: of the CT.
        headers: the CT's slices in order, as :func:`write_ct_series` returns.
        series: text that the SeriesInstanceUID is made of.
        number: SeriesNumber.
        description: SeriesDescription.
    """
    first = headers[0]
    item = _instance(SegmentationStorage, series, first.PatientID, "", series, first.StudyDate)
    item.StudyInstanceUID, item.FrameOfReferenceUID = first.StudyInstanceUID, first.FrameOfReferenceUID
    item.Modality, item.ImageType = "SEG", ["DERIVED", "PRIMARY"]
    item.SeriesDescription, item.SeriesNumber, item.InstanceNumber = description, str(number), "1"
    item.ContentLabel, item.ContentDescription, item.ContentCreatorName = "SEGMENTATION", description, ""
    item.SegmentationType, item.SegmentsOverlap, item.LossyImageCompression = "BINARY", "UNDEFINED", "00"
    item.Rows, item.Columns = first.Rows, first.Columns
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 1, 1, 0, 0
    item.SegmentSequence = Sequence([_segment(number, value) for number, value in enumerate(segments, 1)])
    dimensions = {"DimensionOrganizationUID": _uid("dimensions", series)}
    item.DimensionOrganizationSequence = Sequence([_dataset(**dimensions)])
    item.DimensionIndexSequence = Sequence(
        [
            _dataset(
                DimensionIndexPointer=tag_for_keyword(name), FunctionalGroupPointer=tag_for_keyword(group), **dimensions
            )
            for name, group in (
                ("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
                ("ImagePositionPatient", "PlanePositionSequence"),
            )
        ]
    )
    item.ReferencedSeriesSequence = Sequence(
        [
            _dataset(
                SeriesInstanceUID=first.SeriesInstanceUID,
                ReferencedInstanceSequence=Sequence([_reference(header) for header in headers]),
            )
        ]
    )
    item.SharedFunctionalGroupsSequence = Sequence(
        [
            _dataset(
                PlaneOrientationSequence=Sequence([_dataset(ImageOrientationPatient=first.ImageOrientationPatient)]),
                PixelMeasuresSequence=Sequence(
                    [
                        _dataset(
                            PixelSpacing=first.PixelSpacing,
                            SliceThickness=first.SliceThickness,
                            SpacingBetweenSlices=_ds(geometry.slice_spacing),
                        )
                    ]
                ),
            )
        ]
    )
    frames, groups = [], []
    for segment, mask in enumerate(segments.values(), 1):
        for index, k in enumerate(np.flatnonzero(mask.any(axis=(0, 1))), 1):
            frames.append(mask[:, :, k].T)
            groups.append(_frame(segment, index, geometry.position(int(k)), headers[int(k)]))
    item.PerFrameFunctionalGroupsSequence = Sequence(groups)
    item.NumberOfFrames = str(len(frames))
    bits = np.packbits(np.stack(frames).ravel(), bitorder="little").tobytes()  # frames follow each other bit by bit
    item.PixelData = bits + b"\0" * (len(bits) % 2)
    item["PixelData"].VR = "OB"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path, write_like_original=False)


def _instance(sop_class: UID, name: str, patient_id: str, study: str, series: str, date: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = _uid("instance", name)
    item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    item.is_little_endian, item.is_implicit_VR = True, False
    item.SpecificCharacterSet = "ISO_IR 100"
    item.SOPClassUID, item.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    item.StudyDate = item.SeriesDate = item.ContentDate = date
    item.StudyTime = item.ContentTime = ""
    item.AccessionNumber = item.Manufacturer = item.ReferringPhysicianName = item.StudyID = ""
    item.PatientName = item.PatientID = patient_id
    item.PatientBirthDate = item.PatientSex = ""
    item.PatientIdentityRemoved = "YES"
    item.StudyInstanceUID, item.SeriesInstanceUID = _uid("study", study), _uid("series", series)
    item.FrameOfReferenceUID, item.PositionReferenceIndicator = _uid("frame", study), "SN"
    return item


def _segment(number: int, value: int) -> Dataset:
    label, description, category, kind = SEGMENTS[value]
    return _dataset(
        SegmentNumber=number,
        SegmentLabel=label,
        SegmentDescription=description,
        SegmentAlgorithmType="SEMIAUTOMATIC",
        SegmentAlgorithmName="phantom",
        SegmentedPropertyCategoryCodeSequence=Sequence([_code(*category)]),
        SegmentedPropertyTypeCodeSequence=Sequence([_code(*kind)]),
    )


def _frame(segment: int, index: int, position: np.ndarray, header: Dataset) -> Dataset:
    source = _reference(header)
    source.PurposeOfReferenceCodeSequence = Sequence(
        [_code("121322", "Source image for image processing operation", "DCM")]
    )
    return _dataset(
        DerivationImageSequence=Sequence(
            [
                _dataset(
                    SourceImageSequence=Sequence([source]),
                    DerivationCodeSequence=Sequence([_code("113076", "Segmentation", "DCM")]),
                )
            ]
        ),
        FrameContentSequence=Sequence([_dataset(DimensionIndexValues=[segment, index])]),
        PlanePositionSequence=Sequence([_dataset(ImagePositionPatient=[_ds(v) for v in position])]),
        SegmentIdentificationSequence=Sequence([_dataset(ReferencedSegmentNumber=segment)]),
    )


def _reference(header: Dataset) -> Dataset:
    return _dataset(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)


def _code(value: str, meaning: str, scheme: str = _SCT) -> Dataset:
    return _dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _dataset(**values: Any) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _uid(*parts: str) -> UID:
    return generate_uid(entropy_srcs=["nny-phantom", *parts])


def _ds(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{float(value):.6f}"
