"""Reads CT series by what their headers say; folders and file names mean nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, SegmentationStorage

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
POSITION_TOLERANCE = 0.1  # of the distance between slices
_MAX_SHEAR = 0.01  # sideways shift from slice to slice, of that distance
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "PatientID",
    "SeriesDescription",
    "StudyDate",
    "SeriesDate",
    "ContentDate",
    "ContentTime",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImageType",
]


class CaseError(ValueError):
    """A case cannot be prepared; the message says why, for the report."""


@dataclass(frozen=True)
class Header:
    """What is known about one DICOM file before its pixels are read; lengths in mm, () where the file does not say."""

    path: Path
    sop_class: str
    sop_uid: str
    series_uid: str
    modality: str
    patient_id: str
    description: str
    study_date: str
    date: str
    acquisition: str
    instance: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    size: tuple[int, int]
    localizer: bool

    @property
    def is_seg(self) -> bool:
        """True for a segmentation object."""
        return self.sop_class == SegmentationStorage

    @property
    def is_slice(self) -> bool:
        """True for a slice of a CT volume."""
        return self.sop_class == CTImageStorage and not self.localizer


@dataclass(frozen=True)
class Volume:
    """A CT volume in space.

    ``array`` is int16 (columns, rows, slices) in HU; ``lps`` the 4x4 matrix from those indices to DICOM millimetres;
    ``headers`` the slices in order.
    """

    array: np.ndarray
    lps: np.ndarray
    headers: tuple[Header, ...]

    @property
    def affine(self) -> np.ndarray:
        """The 4x4 matrix to RAS millimetres, as NIfTI wants it."""
        return LPS_TO_RAS @ self.lps

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm along (columns, rows, slices)."""
        return tuple(float(v) for v in np.linalg.norm(self.lps[:3, :3], axis=0))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(abs(np.linalg.det(self.lps[:3, :3]))) / 1000


@dataclass
class Index:
    """A patient's DICOM files: CT slices by SeriesInstanceUID, segmentation objects, and files that cannot be read."""

    series: dict[str, list[Header]] = field(default_factory=lambda: defaultdict(list))
    segs: list[Header] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


def index_files(paths: Iterable[Path]) -> Index:
    """Reads the headers of a patient's files.

    Args:
        paths: files; what is not DICOM is passed over, unless its name ends in ``.dcm``.

    Returns:
        Index: the files by what they are.
    """
    index = Index()
    for path in sorted(paths):
        try:
            header = read_header(path)
        except InvalidDicomError:
            if path.suffix.lower() == ".dcm":
                index.unreadable.append((path, "not a DICOM file: it has no DICM prefix"))
            continue
        except Exception as error:  # pydicom raises many kinds on broken bytes
            index.unreadable.append((path, f"{type(error).__name__}: {error}"))
            continue
        if header.is_seg:
            index.segs.append(header)
        elif header.is_slice and not (header.position and header.orientation and header.spacing):
            index.unreadable.append((path, "a CT slice whose header does not say where it lies; cut off or damaged"))
        elif header.is_slice:
            index.series[header.series_uid].append(header)
    return index


def read_header(path: Path) -> Header:
    """Reads one file's header, without pixels.

    Args:
        path: the file.

    Returns:
        Header: what the file says about itself.

    Raises:
        CaseError: the identifiers are missing.
        InvalidDicomError: not a DICOM file.
    """
    item = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    missing = [name for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID") if not item.get(name)]
    if missing:
        raise CaseError(f"the header has no {', '.join(missing)}; cut off or damaged")
    return Header(
        path=path,
        sop_class=str(item.SOPClassUID),
        sop_uid=str(item.SOPInstanceUID),
        series_uid=str(item.SeriesInstanceUID),
        modality=str(item.get("Modality", "")),
        patient_id=str(item.get("PatientID", "")),
        description=str(item.get("SeriesDescription", "")),
        study_date=str(item.get("StudyDate") or ""),
        date=f"{item.get('ContentDate') or item.get('SeriesDate') or ''}{item.get('ContentTime') or ''}",
        acquisition=str(item.get("AcquisitionNumber") or ""),
        instance=int(item.get("InstanceNumber") or 0),
        position=_floats(item.get("ImagePositionPatient"), 3),
        orientation=_floats(item.get("ImageOrientationPatient"), 6),
        spacing=_floats(item.get("PixelSpacing"), 2),
        size=(int(item.get("Rows") or 0), int(item.get("Columns") or 0)),
        localizer="LOCALIZER" in (item.get("ImageType") or []),
    )


def _floats(value: Sequence[str] | None, count: int) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if value is not None and len(value) == count else ()


def split_volumes(headers: Sequence[Header]) -> list[list[Header]]:
    """Splits a series into its volumes: some series hold several phases of the same place, one after the other.

    Args:
        headers: the slices of one series, in any order; repeated files count once.

    Returns:
        list: one list of slices per volume; a single one when the slices make one regular volume.
    """
    unique = sorted({h.sop_uid: h for h in headers}.values(), key=lambda h: (h.instance, str(h.path)))
    try:
        slice_step(sort_slices(unique))
        return [unique]
    except CaseError:
        pass
    by_acquisition: dict[str, list[Header]] = defaultdict(list)
    for header in unique:
        by_acquisition[header.acquisition].append(header)
    if len({h.position for h in unique}) == len(unique) and len(by_acquisition) == 1:
        return [unique]
    if all(len({h.position for h in group}) == len(group) for group in by_acquisition.values()):
        return list(by_acquisition.values())
    rounds: list[
        list[Header]
    ] = []  # no telling them apart by number: the n-th slice of each place makes the n-th volume
    seen: dict[tuple[float, ...], int] = defaultdict(int)
    for header in unique:
        if seen[header.position] == len(rounds):
            rounds.append([])
        rounds[seen[header.position]].append(header)
        seen[header.position] += 1
    return rounds


def read_volume(headers: Sequence[Header]) -> Volume:
    """Reads one CT volume, its slices in the order of their positions.

    Args:
        headers: its slices, in any order.

    Returns:
        Volume: HU on a regular grid.

    Raises:
        CaseError: the slices make no regular grid, or a file cannot be read.
    """
    slices = sort_slices(headers)
    step = slice_step(slices)
    first = slices[0]
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]  # along a row, from column to column
    lps[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    lps[:3, 2], lps[:3, 3] = step, first.position
    array = np.empty((first.size[1], first.size[0], len(slices)), np.int16)
    for k, header in enumerate(slices):
        array[:, :, k] = _read_hu(header).T  # (rows, columns) to (columns, rows)
    return Volume(array, lps, tuple(slices))


def sort_slices(headers: Sequence[Header]) -> list[Header]:
    """Sorts slices along their common normal; raises CaseError when they differ in orientation, spacing or size."""
    first = headers[0]
    for name in ("orientation", "spacing", "size"):
        odd = [h for h in headers if not np.allclose(getattr(h, name), getattr(first, name), atol=1e-3)]
        if odd:
            raise CaseError(
                f"{odd[0].path.name} has {name} {getattr(odd[0], name)}, but {first.path.name} of the same series "
                f"has {getattr(first, name)}; the slices of a volume must agree"
            )
    normal = _normal(first)
    return sorted(headers, key=lambda h: float(np.dot(normal, h.position)))


def slice_step(slices: Sequence[Header]) -> np.ndarray:
    """Returns the vector (3,) in mm from one sorted slice to the next; CaseError on gaps, doubles and gantry tilt."""
    if len(slices) < 2:
        raise CaseError("the series has one slice only; at least two are needed to know the distance between slices")
    normal = _normal(slices[0])
    positions = np.array([h.position for h in slices])
    along = positions @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    if usual < 1e-3:
        raise CaseError(f"several slices lie at the same place, {along[0]:.2f} mm along the normal")
    wrong = np.flatnonzero(np.abs(gaps - usual) > POSITION_TOLERANCE * usual)
    if len(wrong):
        k = int(wrong[0])
        what = (
            "two slices lie at nearly the same place"
            if gaps[k] < usual
            else f"about {max(1, round(gaps[k] / usual) - 1)} missing"
        )
        raise CaseError(
            f"the slices are not evenly spaced: {gaps[k]:.3f} mm between positions {along[k]:.2f} and "
            f"{along[k + 1]:.2f} ({slices[k].path.name}, {slices[k + 1].path.name}), {usual:.3f} mm elsewhere; {what}"
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    sideways = float(np.linalg.norm(step - normal * (step @ normal)))
    if sideways > _MAX_SHEAR * usual:
        raise CaseError(
            f"each slice is shifted sideways by {sideways:.3f} mm to the one before (tilted gantry); resample the "
            "series to a straight grid first"
        )
    return normal * float(step @ normal)


def _normal(header: Header) -> np.ndarray:
    return np.cross(header.orientation[:3], header.orientation[3:])


def _read_hu(header: Header) -> np.ndarray:
    """Reads one slice as int16 HU (rows, columns)."""
    try:
        item = pydicom.dcmread(header.path)
        stored = item.pixel_array
        slope, intercept = float(item.get("RescaleSlope", 1)), float(item.get("RescaleIntercept", 0))
    except Exception as error:
        raise CaseError(
            f"{header.path.name} cannot be read ({type(error).__name__}: {str(error)[:200]}); download it again"
        ) from error
    if stored.shape != header.size:
        raise CaseError(f"{header.path.name} holds an image of shape {stored.shape}; its header says {header.size}")
    if slope == 1 and intercept.is_integer():
        values = stored.astype(np.int32) + int(intercept)
    else:
        values = np.rint(stored * slope + intercept)
    return values.clip(-32768, 32767).astype(np.int16)
