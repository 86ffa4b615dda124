"""Prepares one patient of HCC-TACE-Seg: chooses segmentation and CT, merges the segments, writes image and label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.dicom import CaseError, Header, Index, Volume, index_files, read_volume, split_volumes
from scripts.prepare.dicom_seg import Segmentation, read_segmentation, segment_masks
from scripts.prepare.output import nifti_paths, write_json, write_nifti_pair
from scripts.prepare.report import thumbnail
from scripts.prepare.status import fingerprint, finished, list_files, remove_case, status_path

LABELS = {0: "background", 1: "liver", 2: "tumour", 3: "portal vein", 4: "abdominal aorta"}
_PAINT_ORDER = (1, 4, 3, 2)  # a voxel of several segments is tumour before vessel before liver
_SEGMENT_NAMES = (
    (None, re.compile(r"thromb", re.I)),  # part vessel, part tumour: none of our classes
    (2, re.compile(r"mass|tumou?r|neoplasm|necro|carcinoma|\bhcc\b", re.I)),
    (3, re.compile(r"portal", re.I)),
    (4, re.compile(r"aort", re.I)),
    (1, re.compile(r"\bliver\b", re.I)),
)
_VERSION = 1  # of what is written: raise it, and finished cases are made again


@dataclass(frozen=True)
class Job:
    """One patient's work, small enough to be sent to another process; ``sources`` are folders or files."""

    output: str
    patient_id: str
    sources: tuple[str, ...]


def prepare_case(job: Job) -> dict[str, Any]:
    """Prepares one patient; never raises for bad data, but returns a record that says what is wrong.

    Args:
        job: which patient, from where, to where.

    Returns:
        dict: the record that the report shows; ``status`` is ``done`` or ``broken``.
    """
    output, case = Path(job.output), job.patient_id
    status = status_path(output, case)
    remove_case(output, case)  # so that a run that is stopped leaves no old image beside a new label
    files = list_files(job.sources)
    record: dict[str, Any] = {
        "case_id": case,
        "patient_id": case,
        "fingerprint": fingerprint(files, _VERSION),
        "warnings": [],
    }
    try:
        volume, label, facts = _load(case, files)
        write_nifti_pair(output, case, volume.array, label, volume.affine)
        thumbnail(volume.array, label, volume.spacing, status.with_suffix(".png"))
        record |= facts | {"status": "done", "bytes": [path.stat().st_size for path in nifti_paths(output, case)]}
    except CaseError as error:
        record |= {"status": "broken", "reason": str(error)}
    except Exception as error:  # one case must not stop the others
        record |= {"status": "broken", "reason": f"unexpected {type(error).__name__}: {error}"}
    if record["status"] == "broken":
        remove_case(output, case)
    write_json(status, record)
    return record


def finished_case(job: Job) -> dict[str, Any] | None:
    """Returns the record of a case that an earlier run finished from the same files, or None."""
    return finished(Path(job.output), job.patient_id, fingerprint(list_files(job.sources), _VERSION))


def _load(patient_id: str, files: Sequence[Path]) -> tuple[Volume, np.ndarray, dict[str, Any]]:
    index = index_files(files)
    segmentation, uid, warnings = choose_segmentation(index)
    folders = {header.path.parent for header in index.series[uid]}
    for path, reason in index.unreadable:
        if path.parent in folders:
            raise CaseError(
                f"{path.name}, in the folder of the CT series, cannot be read ({reason}); download it again"
            )
        warnings.append(f"{path.parent.name}/{path.name} cannot be read ({reason}); it is not part of the CT")
    classes = {number: class_of(texts) for number, texts in segmentation.names.items()}
    groups = split_volumes(index.series[uid])
    volume, masks, more = _choose_volume(segmentation, groups, classes)
    label = merge_segments(masks, classes)
    counts = np.bincount(label.ravel(), minlength=len(LABELS))
    volumes = {name: round(float(counts[value]) * volume.voxel_ml, 2) for value, name in LABELS.items() if value}
    missing = segmentation.instances - {h.sop_uid for series in index.series.values() for h in series}
    if missing:
        warnings.append(f"{len(missing)} slices named by the segmentation are not on disk")
    warnings += more + _doubts(patient_id, volume, volumes, segmentation, classes)
    facts = {
        "shape": list(volume.array.shape),
        "spacing": [round(v, 4) for v in volume.spacing],
        "volumes_ml": volumes,
        "series": {
            "uid": uid,
            "description": volume.headers[0].description,
            "of": len(index.series),
            "volumes": len(groups),
        },
        "warnings": warnings,
    }
    return volume, label, facts


def choose_segmentation(index: Index) -> tuple[Segmentation, str, list[str]]:
    """Chooses a patient's segmentation and the CT series it was drawn on.

    Of several, the one with the most of our classes is taken; then the one of the earliest study, as the CT before the
    procedure is wanted; then the most recently drawn.

    Args:
        index: the patient's files.

    Returns:
        tuple: the segmentation, the SeriesInstanceUID of the CT, warnings.

    Raises:
        CaseError: no usable segmentation, or its CT is not there.
    """
    if not index.series:
        raise CaseError("no CT series found for this patient")
    if not index.segs:
        raise CaseError(f"no segmentation (DICOM SEG) found beside {len(index.series)} CT series")
    usable: list[tuple[Segmentation, str]] = []
    reasons: list[str] = []
    for header in index.segs:
        try:
            segmentation = read_segmentation(header)
            usable.append((segmentation, _series_of(segmentation, index)))
        except CaseError as error:
            reasons.append(str(error))
    if not usable:
        raise CaseError("; ".join(reasons))
    usable.sort(key=lambda pair: (pair[0].header.date, pair[0].header.sop_uid), reverse=True)
    usable.sort(
        key=lambda pair: (-len(_classes(pair[0])), pair[0].header.study_date)
    )  # stable: the most recent stays first
    best, series = usable[0]
    warnings = [f"passed over: {reason}" for reason in reasons]
    if len(usable) > 1:
        others = ", ".join(_folder(s.header) for s, _ in usable[1:])
        warnings.append(
            f"{len(usable)} segmentations; took {_folder(best.header)} ({len(_classes(best))} classes, drawn "
            f"{best.header.date[:8] or 'at an unknown date'}), not {others}"
        )
    return best, series, warnings


def _series_of(segmentation: Segmentation, index: Index) -> str:
    """The CT series that a segmentation refers to."""
    name = _folder(segmentation.header)
    if not _classes(segmentation):
        texts = "; ".join("/".join(names) for names in segmentation.names.values())
        raise CaseError(f"no segment of {name} is liver, tumour, portal vein or aorta: {texts}")

    def hits(uid: str) -> int:
        return sum(h.sop_uid in segmentation.instances for h in index.series[uid])

    known = [uid for uid in segmentation.series if uid in index.series] or [uid for uid in index.series if hits(uid)]
    if not known:
        raise CaseError(
            f"the segmentation {name} refers to CT series {', '.join(segmentation.series) or 'none at all'}, which is "
            f"not among the {len(index.series)} CT series found for this patient"
        )
    return max(known, key=hits)


def _choose_volume(
    segmentation: Segmentation, groups: Sequence[Sequence[Header]], classes: dict[int, int | None]
) -> tuple[Volume, dict[int, np.ndarray], list[str]]:
    """Reads the CT volume that was segmented; of a series with several phases, the one whose slices the SEG names.

    When it names the slices of several phases, the portal-venous one is taken: where the portal vein is brightest.
    """
    hits = [sum(h.sop_uid in segmentation.instances for h in group) for group in groups]
    named = [group for group, n in zip(groups, hits, strict=True) if 2 * n >= max(hits)]
    if len(named) == 1:
        volume = read_volume(named[0])
        return volume, segment_masks(segmentation, volume), []
    fitting: list[tuple[float, Volume, dict[int, np.ndarray]]] = []
    reasons = []
    for group in named:
        try:
            volume = read_volume(group)
            masks = segment_masks(segmentation, volume)
        except CaseError as error:
            reasons.append(str(error))
            continue
        vein = merge_segments(masks, classes) == 3
        fitting.append((float(volume.array[vein].mean()) if vein.any() else -np.inf, volume, masks))
    if not fitting:
        raise CaseError(
            f"none of the {len(named)} volumes of the CT series fits the segmentation: {'; '.join(reasons)}"
        )
    brightness, volume, masks = max(fitting, key=lambda item: item[0])
    if len(fitting) > 1 and not np.isfinite(brightness):
        raise CaseError(
            f"the CT series holds {len(fitting)} volumes of the same place, and the segmentation does not say which of "
            "them it was drawn on"
        )
    warning = f"the segmentation names {len(named)} volumes of one series; took the one that fits and whose portal vein"
    return volume, masks, [f"{warning} is brightest ({brightness:.0f} HU): check it"]


def class_of(texts: Sequence[str]) -> int | None:
    """Tells which class a segment is: from its label, else its description, else its coded type.

    Args:
        texts: the segment's names, the most trusted first.

    Returns:
        int or None: a value of ``LABELS``; None when it is none of them.
    """
    for text in texts:
        for value, pattern in _SEGMENT_NAMES:
            if pattern.search(text):
                return value
    return None


def merge_segments(masks: dict[int, np.ndarray], classes: dict[int, int | None]) -> np.ndarray:
    """Makes one label map of masks that may overlap: tumour before vessels before liver.

    Args:
        masks: segment number -> bool (X, Y, Z).
        classes: segment number -> a value of ``LABELS``, or None.

    Returns:
        np.ndarray: uint8 (X, Y, Z).
    """
    label = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for value in _PAINT_ORDER:
        for number, mask in masks.items():
            if classes[number] == value:
                label[mask] = value
    return label


def _doubts(
    patient_id: str,
    volume: Volume,
    volumes: dict[str, float],
    segmentation: Segmentation,
    classes: dict[int, int | None],
) -> list[str]:
    """Warnings for the report; raises CaseError when nothing is segmented at all."""
    if not any(volumes.values()):
        raise CaseError("the segmentation marks no voxel of any class")
    warnings = [f"no voxel of {name}" for name, value in volumes.items() if value == 0]
    whole = volumes["liver"] + volumes["tumour"]
    if volumes["liver"] and not 400 <= whole <= 5000:
        warnings.append(f"liver with tumour is {whole:.0f} ml, outside 400 to 5000 ml")
    ignored = [segmentation.names[number] for number, value in classes.items() if value is None]
    if ignored:
        warnings.append(
            f"ignored segments: {', '.join('/'.join(dict.fromkeys(texts)) or 'unnamed' for texts in ignored)}"
        )
    if not segmentation.instances & {h.sop_uid for h in volume.headers}:
        warnings.append("the segmentation names none of the CT's slices; it was placed by position alone")
    found = volume.headers[0].patient_id
    if found != patient_id:
        warnings.append(f"the folder says {patient_id}, the files say PatientID {found!r}")
    return warnings


def _classes(segmentation: Segmentation) -> set[int]:
    return {value for value in map(class_of, segmentation.names.values()) if value}


def _folder(header: Header) -> str:
    return f"{header.path.parent.name}/{header.path.name}"
