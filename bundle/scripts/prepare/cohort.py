"""Writes the cases of any download as one prepared dataset, case by case, so that it can be stopped at any time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.dicom import CaseError
from scripts.folds import assign_folds
from scripts.prepare.output import (
    NiftiCase,
    nifti_paths,
    remove_leftovers,
    run_in_parallel,
    write_clinical_csv,
    write_dataset_json,
    write_json,
    write_nifti_pair,
)
from scripts.prepare.report import AIR, WINDOW, thumbnail, write_report
from scripts.prepare.scans import Scan, SourceCase
from scripts.prepare.spreadsheet import Spreadsheet
from scripts.prepare.status import STATUS_FOLDER, fingerprint, finished, list_files, remove_case, status_path

_VERSION = 1  # of what is written: raise it, and finished cases are made again
_CAPTION = "Left: the slice with the most labelled voxels. Right: across it, through their middle."


@dataclass(frozen=True)
class Cohort:
    """What was found in a download.

    Args:
        name: of the dataset.
        cases: where the cases lie.
        labels: class names, background first.
        channels: what each channel of the images is; ``CT`` means HU.
        read: a function at the top of a module, or a `functools.partial` of one: case -> scan.
        description: one sentence.
        regions: name -> label values, for overlapping regions that are scored as unions of classes.
        more: further entries of ``dataset.json``, such as ``licence`` and ``reference``.
        clinical: the clinical table, with ids as ``patient_id``.
        notes: sentences for the report.
    """

    name: str
    cases: Sequence[SourceCase]
    labels: Sequence[str]
    channels: Sequence[str]
    read: Callable[[SourceCase], Scan]
    description: str = ""
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    clinical: Spreadsheet | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """One case's work, small enough to be sent to another process."""

    output: str
    case: SourceCase
    labels: tuple[str, ...]
    ct: bool
    read: Callable[[SourceCase], Scan]

    @property
    def fingerprint(self) -> str:
        """Changes with the files, and with what is to be made of them."""
        function = getattr(self.read, "func", self.read)
        how = (function.__qualname__, getattr(self.read, "args", ()), getattr(self.read, "keywords", {}))
        return fingerprint(list_files(self.case.files), (_VERSION, self.case, self.labels, how))


def prepare_cohort(
    cohort: Cohort,
    output: str,
    *,
    folds: int = 5,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes images, labels, dataset.json, clinical.csv and a report; a broken case is reported and left out.

    Args:
        cohort: what was found.
        output: the folder to write; nothing else may be in it.
        folds: number of folds to deal patients into, where the cohort has none of its own.
        seed: seed of the folds.
        workers: processes.
        overwrite: make every case again, also the finished ones.
        progress: show a progress bar.

    Returns:
        dict: `output`, `kept` (cases), `broken` (case -> reason), `resumed` (cases done before), `report`.

    Raises:
        ValueError: two cases of one name, an output folder that holds something else, or not a single usable case.
    """
    target = Path(output).expanduser()
    cases = {case.case_id: case for case in cohort.cases}
    _check_names(cohort.cases)
    _check_output(target, cohort.cases)
    fold_of = _folds(cohort.cases, folds, seed)
    (target / STATUS_FOLDER).mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    for status in (target / STATUS_FOLDER).glob("*.json"):
        if status.stem not in cases:  # of an earlier run with other options
            remove_case(target, status.stem)
    ct = list(cohort.channels) == ["CT"]
    jobs = {name: Job(str(target), case, tuple(cohort.labels), ct, cohort.read) for name, case in cases.items()}
    before = {}
    if not overwrite:
        known = {name: finished(target, name, job.fingerprint) for name, job in jobs.items()}
        before = {name: record for name, record in known.items() if record is not None}
    todo = {name: job for name, job in jobs.items() if name not in before}
    records = before | run_in_parallel(
        prepare_scan, todo, workers=workers, progress=progress, description=f"prepare {cohort.name}"
    )
    for name, record in records.items():
        record["fold"] = fold_of[name]
        if cohort.clinical is not None and record["patient_id"] not in cohort.clinical.rows:
            missing = f"no row in {cohort.clinical.path.name}: every clinical value is unknown"
            record["warnings"] = [*record["warnings"], missing]
    return _finish(cohort, target, [records[name] for name in cases]) | {"resumed": len(before)}


def prepare_scan(job: Job) -> dict[str, Any]:
    """Prepares one case; never raises for bad data, but returns a record that says what is wrong."""
    output, case = Path(job.output), job.case
    remove_case(output, case.case_id)  # so that a run that is stopped leaves no old image beside a new label
    record: dict[str, Any] = {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "group": case.group,
        "fingerprint": job.fingerprint,
        "warnings": [],
    }
    try:
        scan = job.read(case)
        write_nifti_pair(output, case.case_id, scan.image, scan.label, scan.affine)
        _draw(scan, job.ct, status_path(output, case.case_id).with_suffix(".png"))
        sizes = [path.stat().st_size for path in nifti_paths(output, case.case_id)]
        record |= _facts(scan, job.labels) | {"status": "done", "bytes": sizes}
    except CaseError as error:
        record |= {"status": "broken", "reason": str(error)}
    except Exception as error:  # one case must not stop the others
        files = " … ".join(dict.fromkeys((*case.files[:1], *case.files[-1:])))
        record |= {"status": "broken", "reason": f"{files}: unexpected {type(error).__name__}: {error}"}
    if record["status"] == "broken":
        remove_case(output, case.case_id)
    write_json(status_path(output, case.case_id), record)
    return record


def safe_name(text: str) -> str:
    """Turns a text into one that can name a case's files: letters, digits, ``_``, ``-`` and ``.``."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "case"


def _facts(scan: Scan, labels: Sequence[str]) -> dict[str, Any]:
    millilitres = float(abs(np.linalg.det(scan.affine[:3, :3]))) / 1000
    counts = np.bincount(scan.label.ravel(), minlength=len(labels))
    return {
        "shape": list(scan.image.shape[:3]),
        "spacing": [round(float(v), 4) for v in nib.affines.voxel_sizes(scan.affine)],
        "volumes_ml": {name: round(float(counts[i]) * millilitres, 2) for i, name in enumerate(labels) if i},
        "warnings": scan.warnings,
    }


def _draw(scan: Scan, ct: bool, path: Path) -> None:
    """Writes the thumbnail, turned as radiologists look at it."""
    image = scan.image if scan.image.ndim == 3 else scan.image[..., 0]
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(scan.affine), nib.orientations.axcodes2ornt("LPS")
    )
    spacing = nib.affines.voxel_sizes(scan.affine)[np.argsort(turn[:, 0])]
    image, label = (nib.orientations.apply_orientation(array, turn) for array in (image, scan.label))
    low, high = (float(v) for v in np.percentile(image, (1, 99.5)))
    shown = {"window": WINDOW, "air": AIR} if ct else {"window": (low, max(high, low + 1)), "air": low}
    thumbnail(image, label, spacing, path, focus=None, **shown)


def _folds(cases: Sequence[SourceCase], folds: int, seed: int) -> dict[str, int]:
    """Case -> fold: the published one, or dealt by patient; broken cases too, so that mending one moves nobody."""
    if all(case.fold is not None for case in cases):
        return {case.case_id: int(case.fold) for case in cases}
    fold_of = assign_folds([case.patient_id for case in cases], folds=folds, seed=seed)
    return {case.case_id: fold_of[case.patient_id] for case in cases}


def _check_names(cases: Sequence[SourceCase]) -> None:
    if not cases:
        raise ValueError("no case is left; check --groups and --part")
    seen: dict[str, SourceCase] = {}
    for case in cases:
        if case.case_id in seen:
            raise ValueError(
                f"{seen[case.case_id].files[0]} and {case.files[0]} would both be the case {case.case_id}; rename one"
            )
        seen[case.case_id] = case


def _check_output(target: Path, cases: Sequence[SourceCase]) -> None:
    """Refuses to write over the download, or into a folder that `prepare` did not make."""
    root = target.resolve()
    for case in cases:
        inside = next((file for file in case.files if root in Path(file).resolve().parents), None)
        if inside:
            raise ValueError(f"{inside} lies in the output folder {target}; choose another --output")
    if root.is_dir() and any(root.iterdir()) and not (root / STATUS_FOLDER).is_dir():
        raise ValueError(f"{target} holds files that prepare did not write; choose another --output or empty it")


def _finish(cohort: Cohort, target: Path, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Writes what belongs to the whole cohort."""
    done = [record for record in records if record["status"] == "done"]
    broken = {record["case_id"]: record["reason"] for record in records if record["status"] == "broken"}
    labels = dict(enumerate(cohort.labels))
    if cohort.clinical is not None:
        rows = cohort.clinical.rows
        patients = dict.fromkeys(record["patient_id"] for record in done)
        write_clinical_csv(target / "clinical.csv", cohort.clinical.header, [rows[p] for p in patients if p in rows])
    more = dict(cohort.more) | ({"regions": {k: list(v) for k, v in cohort.regions.items()}} if cohort.regions else {})
    write_dataset_json(
        target,
        [NiftiCase(r["case_id"], r["patient_id"], r["fold"], r["group"]) for r in done],
        name=cohort.name,
        labels=labels,
        description=cohort.description,
        channels=cohort.channels,
        more=more,
    )
    report = target / "prepare-report.html"
    write_report(
        report,
        records=records,
        excluded=[],
        labels=labels,
        status_folder=target / STATUS_FOLDER,
        title=cohort.name,
        notes=cohort.notes,
        about=f"Images: {', '.join(cohort.channels)}",
        caption=_CAPTION,
    )
    if not done:
        case, reason = next(iter(broken.items()))
        raise ValueError(
            f"none of the {len(records)} cases could be prepared; {case}: {reason}. All reasons are in {report}"
        )
    return {"output": str(target), "kept": len(done), "broken": broken, "report": str(report)}
