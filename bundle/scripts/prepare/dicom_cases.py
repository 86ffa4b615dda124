"""Imports DICOM series (CT, MR) with segmentation objects (SEG) or structure sets (RTSTRUCT)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, MRImageStorage, RTStructureSetStorage
from tqdm import tqdm

from scripts.dicom import CaseError, Header, Volume, read_header, read_volume, split_volumes
from scripts.prepare.cohort import Cohort, prepare_cohort, safe_name
from scripts.prepare.dicom_seg import Segmentation, read_segmentation, segment_masks
from scripts.prepare.rtstruct import StructureSet, read_structures, structure_masks
from scripts.prepare.scans import Scan, SourceCase
from scripts.prepare.spreadsheet import read_clinical_table

Drawing = Segmentation | StructureSet
SLICES = (CTImageStorage, MRImageStorage)
Classes = tuple[tuple[str, str], ...]  # name, regular expression of the structures that it takes in


def prepare_dicom(
    source: str,
    output: str,
    *,
    labels: str | Sequence[str] = "",
    clinical: str | None = None,
    id_column: str = "patient_id",
    folds: int = 5,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Imports DICOM CT or MR series with the SEG or RTSTRUCT objects that were drawn on them.

    What belongs together is decided by the references in the files, never by folders or names. Each series that an
    object refers to becomes a case; several objects of one series are put together. PatientID tells patients apart.

    Args:
        source: a folder with DICOM files at any depth.
        output: the folder to write.
        labels: the classes, separated by commas, each with the words that structures of it are called by (a regular
            expression, case does not matter): "liver, tumour=mass|tumou?r, vein=portal". Where structures overlap, the
            later class wins. By default every name that occurs is a class, in alphabetical order.
        clinical: table (xlsx or csv) with the patients' clinical variables.
        id_column: its column with the PatientIDs.
        folds: number of folds for cross-validation; a patient is in one fold only.
        seed: seed of the folds.
        workers: processes; one needs about 1 GB for a series of 512x512x100.
        overwrite: make every case again, also the finished ones.
        progress: show a progress bar.

    Returns:
        dict: `output`, `kept` (cases), `broken` (case -> reason), `resumed` (cases done before), `report`.

    Raises:
        FileNotFoundError: no SEG and no RTSTRUCT.
        ValueError: a wrong expression in `labels`, or not a single usable case.
    """
    root = Path(source).expanduser()
    series, drawings, unreadable = index_folder(root, progress)
    cases, names, modalities = _cases(series, drawings, unreadable)
    classes = parse_classes(labels) or tuple((name, f"^{re.escape(name)}$") for name in sorted(names))
    cohort = Cohort(
        name=root.resolve().name,
        cases=cases,
        labels=("background", *(name for name, _ in classes)),
        channels=("/".join(sorted(modalities)) or "image",),
        read=partial(read_dicom_case, classes=classes),
        clinical=None if clinical is None else read_clinical_table(root, clinical, id_column=id_column),
        notes=[f"{path} cannot be read ({reason})." for path, reason in unreadable],
    )
    return prepare_cohort(
        cohort, output, folds=folds, seed=seed, workers=workers, overwrite=overwrite, progress=progress
    )


def parse_classes(labels: str | Sequence[str]) -> Classes:
    """Reads ``"liver, tumour=mass|tumou?r"``; a class without ``=`` is recognised by its own name."""
    parts = labels.split(",") if isinstance(labels, str) else [str(label) for label in labels]
    classes = []
    for part in filter(None, (part.strip() for part in parts)):
        name, _, pattern = (text.strip() for text in part.partition("="))
        pattern = pattern or re.escape(name)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--labels: {pattern!r} of {name!r} is no regular expression: {error}") from error
        classes.append((name, pattern))
    return tuple(classes)


def index_folder(root: Path, progress: bool) -> tuple[dict[str, list[Header]], list[Header], list[tuple[Path, str]]]:
    """Reads the headers of all files below a folder.

    Args:
        root: the folder.
        progress: show a progress bar.

    Returns:
        tuple: slices by SeriesInstanceUID, SEG and RTSTRUCT objects, and files that cannot be read, with the reason.

    Raises:
        FileNotFoundError: no SEG and no RTSTRUCT.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; --source must hold DICOM files")
    series: dict[str, list[Header]] = defaultdict(list)
    drawings, unreadable = [], []
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in tqdm(files, "reading headers", disable=not progress):
        try:
            header = read_header(path)
        except InvalidDicomError:
            if path.suffix.lower() == ".dcm":
                unreadable.append((path, "not a DICOM file: it has no DICM prefix"))
            continue
        except Exception as error:  # pydicom raises many kinds on broken bytes
            unreadable.append((path, f"{type(error).__name__}: {error}"))
            continue
        if header.is_seg or header.sop_class == RTStructureSetStorage:
            drawings.append(header)
        elif _is_slice(header):
            series[header.series_uid].append(header)
        elif header.sop_class in SLICES and not header.localizer:
            unreadable.append((path, "a slice whose header does not say where it lies; cut off or damaged"))
    if not drawings:
        raise FileNotFoundError(f"{root} holds no DICOM SEG and no RTSTRUCT among {len(files)} files")
    return series, drawings, unreadable


def read_dicom_case(case: SourceCase, classes: Classes) -> Scan:
    """Reads a series and the objects drawn on it.

    Args:
        case: its files: slices and objects.
        classes: name and regular expression of each class, from 1.

    Returns:
        Scan: int16 image, label, where they lie.

    Raises:
        CaseError: what is wrong, with the file.
    """
    if case.problem:
        raise CaseError(case.problem)
    headers = [read_header(Path(path)) for path in case.images]
    drawings = [_read(header) for header in headers if not _is_slice(header)]
    volume = _volume([header for header in headers if _is_slice(header)], drawings)
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    ignored = []
    for drawing in drawings:
        masks = (structure_masks if isinstance(drawing, StructureSet) else segment_masks)(drawing, volume)
        for number, texts in drawing.names.items():
            value = _class_of(texts, classes)
            if value is None:
                ignored.append("/".join(texts))
            else:
                found[value].append(masks[number])
    label = np.zeros(volume.array.shape, np.uint8)
    for value in sorted(found):
        for mask in found[value]:
            label[mask] = value
    if not label.any():
        objects = ", ".join(str(drawing.header.path) for drawing in drawings)
        raise CaseError(
            f"{objects} marks no voxel of any class; there are the structures {', '.join(ignored) or 'none'}"
        )
    warnings = [f"ignored structures: {', '.join(ignored)}"] if ignored else []
    if len(drawings) > 1:
        warnings.append(f"{len(drawings)} objects were drawn on this series; their structures are put together")
    return Scan(volume.array, label, volume.affine, warnings)


def _cases(
    series: dict[str, list[Header]], drawings: Sequence[Header], unreadable: Sequence[tuple[Path, str]]
) -> tuple[list[SourceCase], set[str], set[str]]:
    """The cases, the names of all structures, and the modalities of the series."""
    objects: dict[str, list[Header]] = defaultdict(list)
    cases, names = [], {}
    for header in drawings:
        patient = header.patient_id or header.path.parent.name
        try:
            drawing = _read(header)
            objects[_series_of(drawing, series)].append(header)
            names |= {texts[0].casefold(): texts[0] for texts in drawing.names.values() if texts and texts[0]}
        except CaseError as error:
            name = safe_name(f"{patient}_{header.path.stem}")
            cases.append(SourceCase(name, patient, (str(header.path),), "", problem=str(error)))
    of_patient = defaultdict(list)
    for uid in objects:
        of_patient[series[uid][0].patient_id or series[uid][0].path.parent.name].append(uid)
    for patient, uids in of_patient.items():
        for uid in uids:
            name = safe_name(patient if len(uids) == 1 else f"{patient}_{uid.replace('.', '')[-8:]}")
            files = tuple(str(header.path) for header in (*series[uid], *objects[uid]))
            cases.append(SourceCase(name, patient, files, "", problem=_lost(uid, series, unreadable)))
    known = {header.path.parent for headers in series.values() for header in headers}
    for path, reason in unreadable:
        if path.parent not in known:  # it may be a drawing, whose case would be missed
            name, problem = safe_name(path.stem), f"{path} cannot be read ({reason}); download it again or remove it"
            cases.append(SourceCase(name, name, (str(path),), "", problem=problem))
    return sorted(cases, key=lambda c: c.case_id), set(names.values()), {series[uid][0].modality for uid in objects}


def _lost(uid: str, series: dict[str, list[Header]], unreadable: Sequence[tuple[Path, str]]) -> str:
    """What is wrong with a series in whose own folder a file cannot be read: it may be one of its slices."""
    folders = {header.path.parent for header in series[uid]}
    shared = {header.path.parent for other, headers in series.items() if other != uid for header in headers}
    for path, reason in unreadable:
        if path.parent in folders - shared:
            return f"{path}, in the folder of the series, cannot be read ({reason}); download it again or remove it"
    return ""


def _is_slice(header: Header) -> bool:
    placed = header.position and header.orientation and header.spacing
    return header.sop_class in SLICES and not header.localizer and bool(placed)


def _read(header: Header) -> Drawing:
    return read_segmentation(header) if header.is_seg else read_structures(header)


def _series_of(drawing: Drawing, series: dict[str, list[Header]]) -> str:
    """The series that an object was drawn on, by its reference or by the slices that it names."""
    hits = {uid: sum(h.sop_uid in drawing.instances for h in headers) for uid, headers in series.items()}
    known = [uid for uid in drawing.series if uid in series] or [uid for uid, count in hits.items() if count]
    if not known:
        named = ", ".join(drawing.series) or "none at all"
        raise CaseError(f"{drawing.header.path} refers to series {named}, which is not among the {len(series)} found")
    return max(known, key=lambda uid: hits[uid])


def _volume(slices: Sequence[Header], drawings: Sequence[Drawing]) -> Volume:
    """The volume of a series; of one with several, that whose slices the objects name."""
    groups = split_volumes(slices)
    named = frozenset().union(*(drawing.instances for drawing in drawings))
    hits = [sum(header.sop_uid in named for header in group) for group in groups]
    best = [group for group, count in zip(groups, hits, strict=True) if count == max(hits)]
    if len(best) > 1:
        raise CaseError(
            f"the series {slices[0].series_uid} in {slices[0].path.parent} holds {len(best)} volumes of one place, and "
            f"{drawings[0].header.path} does not say which of them it was drawn on"
        )
    return read_volume(best[0])


def _class_of(texts: Sequence[str], classes: Classes) -> int | None:
    for text in texts:
        for value, (_, pattern) in enumerate(classes, 1):
            if re.search(pattern, text, re.I):
                return value
    return None
