"""DICOM series to segment: one a folder, checked by its headers before ITK reads the folder as a volume."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.misc import is_dicom
from pydicom.uid import CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from scripts.dicom import CaseError, Header, read_header, slice_step, sort_slices, split_volumes

logger = logging.getLogger(__name__)

_SLICES = (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)
_READ_APART = ("SeriesNumber", "SequenceName", "SliceThickness", "Rows", "Columns", "SeriesDate")  # by ITK, as texts
_ADVICE = "Give the folder of one series, or move each series into a folder of its own."


def series_cases(source: Path) -> list[dict[str, str]]:
    """Find the image series in a folder and in the folders below it.

    Args:
        source: folder to search.

    Returns:
        One case a series: ``image`` (its folder), ``patient_id`` (PatientID, else the folder's name) and ``case_id``
        (patient and folder; where two are equal, both end in the last 8 digits of their SeriesInstanceUID).

    Raises:
        ValueError: all folders that cannot be read as one volume, one a line.
    """
    series: dict[Path, list[Header]] = {}
    problems = []
    for folder in [source, *sorted(path for path in source.rglob("*") if path.is_dir())]:
        try:
            series[folder] = read_series(folder)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    found = {folder: slices[0] for folder, slices in series.items() if slices}
    names = {folder: _name(folder, first) for folder, first in found.items()}
    count = Counter(names.values())
    return [
        {
            "image": str(folder),
            "case_id": names[folder] + (f"_{_digits(first)}" if count[names[folder]] > 1 else ""),
            "patient_id": first.patient_id or folder.name,
        }
        for folder, first in found.items()
    ]


def _name(folder: Path, first: Header) -> str:
    """Patient and folder, as the name of a file."""
    parts = [first.patient_id] if first.patient_id not in ("", folder.name) else []
    return re.sub(r"[/\\\s]+", "_", "_".join([*parts, folder.name]))


def _digits(first: Header) -> str:
    return first.series_uid.replace(".", "")[-8:]


def read_series(folder: Path) -> list[Header]:
    """Read the headers of the one image series of a folder.

    Args:
        folder: folder that holds the slices; folders below it are not searched.

    Returns:
        Its slices along their normal; none where the folder holds no CT, MR or PET slice.

    Raises:
        ValueError: damaged files, several series, another object with pixels beside the series (ITK might read that
            one), or slices that make no regular volume.
    """
    slices, others = _read_headers(folder)
    kinds = ", ".join(sorted({header.modality or "unknown" for header in others}))
    if not slices:
        if others:
            logger.warning("%s holds no CT, MR or PET slices (%s): passed over.", folder, kinds)
        return []
    uids = Counter(header.series_uid for header in slices)
    if len(uids) > 1:
        listed = "; ".join(_describe([h for h in slices if h.series_uid == uid]) for uid in uids)
        raise ValueError(f"{folder} holds {len(uids)} image series, expected one: {listed}. {_ADVICE}")
    if others:
        raise ValueError(
            f"{folder} holds {_describe(slices)} and {len(others)} other object(s) with pixels ({kinds}; "
            f"{others[0].path.name}), expected the slices of one series only. {_ADVICE}"
        )
    ordered = _regular(folder, slices)
    _check_read_whole(folder, ordered)
    return ordered


def _read_headers(folder: Path) -> tuple[list[Header], list[Header]]:
    """Headers of the slices, and of other objects that have pixels (SEG, localizers, screenshots)."""
    slices, others = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name.startswith(".") or path.name == "DICOMDIR":
            continue
        if not is_dicom(path):
            if path.suffix.lower() == ".dcm":
                raise ValueError(f"{path} is not a DICOM file (no DICM prefix). Download it again, or remove it.")
            continue
        try:
            header = read_header(path)
        except Exception as error:  # pydicom raises many kinds on broken bytes
            raise ValueError(f"{path} cannot be read ({error}). Download it again, or remove it.") from error
        if header.sop_class not in _SLICES or header.localizer:
            others += [header] if any(header.size) else []
        elif not (header.position and header.orientation and header.spacing):
            raise ValueError(f"{path} does not say where its slice lies. Download it again, or remove the series.")
        else:
            slices.append(header)
    return slices, others


def _describe(slices: Sequence[Header]) -> str:
    first = slices[0]
    return f"'{first.description}' ({len(slices)} slices, SeriesInstanceUID {first.series_uid})"


def _regular(folder: Path, slices: Sequence[Header]) -> list[Header]:
    """Slices in order; ValueError unless they make one volume on a regular grid."""
    try:
        ordered = sort_slices(slices)
        slice_step(ordered)
        return ordered
    except CaseError as error:
        volumes = split_volumes(slices)
        hint = ""
        if len(volumes) > 1:
            numbers = ", ".join(sorted({header.acquisition or "none" for header in slices}))
            hint = f" It may hold {len(volumes)} volumes (AcquisitionNumber {numbers}), e.g. phases: separate them."
        raise ValueError(f"{folder}: {_describe(slices)} is no regular volume: {error}.{hint}") from error


def _check_read_whole(folder: Path, slices: Sequence[Header]) -> None:
    """Check what ITK tells series apart by; it would silently read the first of them."""
    keys = {header.path.name: _reading_keys(header.path) for header in slices}
    one, key = next(iter(keys.items()))
    for name, other in keys.items():
        for tag, expected, got in zip(_READ_APART, key, other, strict=True):
            if got != expected:
                raise ValueError(
                    f"{folder}: {tag} is '{expected}' in {one} but '{got}' in {name} of the same series; ITK would "
                    "read the slices with the one value only. Convert the series to NIfTI."
                )


def _reading_keys(path: Path) -> list[str]:
    item = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_READ_APART))
    return [str(item.get(tag, "")) for tag in _READ_APART]
