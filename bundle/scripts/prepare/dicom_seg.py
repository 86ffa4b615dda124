"""Reads a DICOM segmentation object (SEG) and puts its frames on the grid of the CT, by their positions in space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from scripts.dicom import POSITION_TOLERANCE, CaseError, Header, Volume


@dataclass(frozen=True)
class Segmentation:
    """A segmentation object in memory.

    ``names`` are each segment's label, description and coded type, in this order; ``series`` and ``instances`` are the
    UIDs of the series and slices it was drawn on, as far as it says.
    """

    header: Header
    item: Dataset
    names: dict[int, tuple[str, ...]]
    series: tuple[str, ...]
    instances: frozenset[str]


def read_segmentation(header: Header) -> Segmentation:
    """Reads a DICOM SEG.

    Args:
        header: its header.

    Returns:
        Segmentation: the object with its names and references.

    Raises:
        CaseError: not readable, or not binary.
    """
    try:
        item = pydicom.dcmread(header.path)
        kind = str(item.get("SegmentationType", ""))
        names = {int(segment.SegmentNumber): _names(segment) for segment in item.SegmentSequence}
        references = list(item.get("ReferencedSeriesSequence") or [])
        instances = {uid for frame in item.PerFrameFunctionalGroupsSequence for uid in _sources(frame)}
        instances = instances or {
            str(r.ReferencedSOPInstanceUID)
            for reference in references
            for r in reference.get("ReferencedInstanceSequence") or []
        }
        series = tuple(dict.fromkeys(str(reference.SeriesInstanceUID) for reference in references))
    except Exception as error:
        raise CaseError(
            f"the segmentation {_where(header)} cannot be read ({type(error).__name__}: {str(error)[:200]}); "
            "download it again"
        ) from error
    if kind != "BINARY":
        raise CaseError(f"the segmentation {_where(header)} is of type {kind!r}; expected BINARY")
    return Segmentation(header, item, names, series, frozenset(instances))


def segment_masks(segmentation: Segmentation, volume: Volume) -> dict[int, np.ndarray]:
    """Puts the frames of a segmentation on a CT's grid.

    Args:
        segmentation: the SEG; it may be cropped, flipped or transposed in plane, but not resampled.
        volume: the CT it was drawn on.

    Returns:
        dict: segment number -> bool (columns, rows, slices); they may overlap.

    Raises:
        CaseError: a frame lies on no slice of the CT, or on another grid.
    """
    item, header = segmentation.item, segmentation.header
    frames = list(item.PerFrameFunctionalGroupsSequence)
    try:
        pixels = item.pixel_array.reshape(len(frames), int(item.Rows), int(item.Columns))  # (frames, rows, columns)
    except Exception as error:
        raise CaseError(
            f"the pixels of the segmentation {_where(header)} cannot be read ({type(error).__name__}: "
            f"{str(error)[:200]}); download it again"
        ) from error
    masks = {number: np.zeros(volume.array.shape, bool) for number in segmentation.names}
    positions = {h.sop_uid: h.position for h in volume.headers}
    to_index = np.linalg.inv(volume.lps)
    for n, frame in enumerate(frames):
        try:
            number = int(_need(item, frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            if number not in masks:
                raise CaseError(f"it belongs to segment {number}, which the object does not describe")
            start = _start(item, frame, to_index, positions, len(volume.headers))
            _paste(masks[number], pixels[n], start, *_axes(item, frame, to_index))
        except CaseError as error:
            raise CaseError(f"frame {n + 1} of {len(frames)} of the segmentation {_where(header)}: {error}") from error
    return masks


def _start(
    item: Dataset, frame: Dataset, to_index: np.ndarray, positions: dict[str, tuple[float, ...]], slices: int
) -> tuple[int, ...]:
    """The CT voxel (column, row, slice) where the frame's first pixel lies."""
    plane = _group(item, frame, "PlanePositionSequence")
    position = plane.get("ImagePositionPatient") if plane is not None else None
    if position is None:  # some writers name the source slice only
        position = next((positions[uid] for uid in _sources(frame) if uid in positions), None)
    if position is None:
        raise CaseError("it says neither where it lies nor which slice it was drawn on")
    place = [float(v) for v in position]
    exact = (to_index @ [*place, 1.0])[:3]
    start = np.round(exact).astype(int)
    off = np.abs(exact - start)
    if off[2] > POSITION_TOLERANCE or not 0 <= start[2] < slices:
        raise CaseError(
            f"it lies at {tuple(round(v, 3) for v in place)} mm, which would be slice {exact[2]:.2f} of 0 to "
            f"{slices - 1}; it fits no slice of the CT series that the segmentation refers to"
        )
    if off[:2].max() > POSITION_TOLERANCE:
        raise CaseError(f"its pixels lie {off[:2].max():.2f} pixels beside those of the CT")
    return tuple(int(v) for v in start)


def _axes(item: Dataset, frame: Dataset, to_index: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """For the frame's columns and for its rows: the CT axis that they run along, and in which direction (1 or -1)."""
    cosines = [float(v) for v in _need(item, frame, "PlaneOrientationSequence").ImageOrientationPatient]
    between_rows, between_columns = (float(v) for v in _need(item, frame, "PixelMeasuresSequence").PixelSpacing)
    axes = []
    for cosine, spacing in ((cosines[:3], between_columns), (cosines[3:], between_rows)):
        step = to_index[:3, :3] @ (np.array(cosine) * spacing)  # in CT voxels
        axis = int(np.argmax(np.abs(step)))
        straight = np.zeros(3)
        straight[axis] = np.sign(step[axis])
        if axis == 2 or np.abs(step - straight).max() > 1e-3:
            raise CaseError(
                f"it lies on another grid than the CT: from one of its pixels to the next are "
                f"{np.round(step, 4).tolist()} CT voxels; expected 1 along one axis"
            )
        axes.append((axis, int(straight[axis])))
    return axes[0], axes[1]


def _paste(
    mask: np.ndarray, pixels: np.ndarray, start: tuple[int, ...], columns: tuple[int, int], rows: tuple[int, int]
) -> None:
    """Adds a frame (rows, columns) to a mask (CT columns, CT rows, slices)."""
    plane = pixels.T if columns[0] == 0 else pixels  # (CT columns, CT rows)
    where = [np.empty(0, int)] * 2
    for (axis, direction), count in ((columns, pixels.shape[1]), (rows, pixels.shape[0])):
        where[axis] = start[axis] + direction * np.arange(count)
    keep = [(w >= 0) & (w < size) for w, size in zip(where, mask.shape, strict=False)]
    if plane[~(keep[0][:, None] & keep[1][None, :])].any():
        raise CaseError("it reaches beyond the edge of the CT")
    at = np.ix_(where[0][keep[0]], where[1][keep[1]])
    mask[:, :, start[2]][at] |= plane[np.ix_(keep[0], keep[1])].astype(bool)


def _group(item: Dataset, frame: Dataset, name: str) -> Dataset | None:
    """A functional group of a frame, or the one shared by all frames."""
    for place in (frame, *(item.get("SharedFunctionalGroupsSequence") or [])):
        if place.get(name):
            return place[name][0]
    return None


def _need(item: Dataset, frame: Dataset, name: str) -> Dataset:
    group = _group(item, frame, name)
    if group is None:
        raise CaseError(f"it has no {name}")
    return group


def _names(segment: Dataset) -> tuple[str, ...]:
    coded = [str(code.get("CodeMeaning", "")) for code in segment.get("SegmentedPropertyTypeCodeSequence") or []]
    texts = [str(segment.get("SegmentLabel", "")), str(segment.get("SegmentDescription", "")), *coded]
    return tuple(text for text in texts if text)


def _sources(frame: Dataset) -> list[str]:
    return [
        str(source.ReferencedSOPInstanceUID)
        for derivation in frame.get("DerivationImageSequence") or []
        for source in derivation.get("SourceImageSequence") or []
    ]


def _where(header: Header) -> str:
    return f"{header.path.parent.name}/{header.path.name}"
