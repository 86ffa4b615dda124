"""Reads a DICOM RT structure set (RTSTRUCT) and fills its contours on the grid of the scan they were drawn on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from skimage.draw import polygon

from scripts.dicom import POSITION_TOLERANCE, CaseError, Header, Volume


@dataclass(frozen=True)
class StructureSet:
    """A structure set in memory.

    ``names`` are the regions' names by number; ``series`` and ``instances`` the UIDs of the series and slices that it
    was drawn on, as far as it says.
    """

    header: Header
    item: Dataset
    names: dict[int, tuple[str, ...]]
    series: tuple[str, ...]
    instances: frozenset[str]


def read_structures(header: Header) -> StructureSet:
    """Reads an RTSTRUCT.

    Args:
        header: its header.

    Returns:
        StructureSet: the object with its names and references.

    Raises:
        CaseError: not readable, or without regions.
    """
    try:
        item = pydicom.dcmread(header.path)
        names = {int(region.ROINumber): (str(region.get("ROIName", "")),) for region in item.StructureSetROISequence}
        series = [
            str(reference.SeriesInstanceUID)
            for frame in item.get("ReferencedFrameOfReferenceSequence") or []
            for study in frame.get("RTReferencedStudySequence") or []
            for reference in study.get("RTReferencedSeriesSequence") or []
        ]
        instances = {
            str(image.ReferencedSOPInstanceUID)
            for region in item.ROIContourSequence
            for contour in region.get("ContourSequence") or []
            for image in contour.get("ContourImageSequence") or []
        }
    except Exception as error:  # whatever a damaged file makes pydicom raise
        raise CaseError(
            f"the structure set {header.path} cannot be read ({type(error).__name__}: {str(error)[:200]}); "
            "download it again"
        ) from error
    return StructureSet(header, item, names, tuple(dict.fromkeys(series)), frozenset(instances))


def structure_masks(structures: StructureSet, volume: Volume) -> dict[int, np.ndarray]:
    """Fills the closed planar contours of each region.

    A voxel belongs to a region if its centre lies in an odd number of the region's contours of its slice, so that
    an inner contour is a hole; centres on a contour count as inside. Nothing is filled in between slices.

    Args:
        structures: the structure set.
        volume: the scan that it was drawn on.

    Returns:
        dict: region number -> bool (columns, rows, slices); they may overlap.

    Raises:
        CaseError: a contour that lies across or between the slices, or beside all of them.
    """
    masks = {number: np.zeros(volume.array.shape, bool) for number in structures.names}
    to_index = np.linalg.inv(volume.lps)
    for region in structures.item.ROIContourSequence:
        number = int(region.ReferencedROINumber)
        if number not in masks:
            raise CaseError(f"{structures.header.path}: contours of region {number}, which is not described")
        for n, contour in enumerate(region.get("ContourSequence") or [], 1):
            if str(contour.get("ContourGeometricType", "")) != "CLOSED_PLANAR":
                continue  # points and open lines enclose nothing
            try:
                _fill(masks[number], contour, to_index)
            except CaseError as error:
                name = structures.names[number][0]
                raise CaseError(f"{structures.header.path}: contour {n} of {name!r} {error}") from error
    return masks


def _fill(mask: np.ndarray, contour: Dataset, to_index: np.ndarray) -> None:
    """Turns what a contour encloses from outside to inside, or back."""
    values = np.array([float(v) for v in contour.get("ContourData") or []])
    if len(values) % 3 or len(values) < 9:
        raise CaseError(f"has {len(values)} coordinates; expected three for each of at least three points")
    stated = int(contour.get("NumberOfContourPoints") or len(values) // 3)
    if stated != len(values) // 3:  # pydicom reads a file that is cut off as far as it goes
        raise CaseError(f"has {len(values) // 3} points, but says {stated}; the file is cut off: download it again")
    points = values.reshape(-1, 3)
    index = points @ to_index[:3, :3].T + to_index[:3, 3]  # (points, 3): column, row, slice
    index = np.round(index, 4)  # else rounding decides about centres that lie on the contour
    k = int(np.round(index[:, 2].mean()))
    off = float(np.abs(index[:, 2] - k).max())
    if off > POSITION_TOLERANCE:
        low, high = index[:, 2].min(), index[:, 2].max()
        raise CaseError(
            f"lies on slices {low:.2f} to {high:.2f}, not on one of them; it was drawn on another series, or across it"
        )
    if not 0 <= k < mask.shape[2]:
        raise CaseError(f"lies on slice {k}, but the series has 0 to {mask.shape[2] - 1}")
    columns, rows = polygon(index[:, 0], index[:, 1], mask.shape[:2])
    mask[columns, rows, k] ^= True
