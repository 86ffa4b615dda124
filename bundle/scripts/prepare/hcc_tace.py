"""Prepares HCC-TACE-Seg (TCIA, doi 10.7937/TCIA.5FNA-0924): CT before TACE, its segmentation, the clinical table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.dicom import read_header
from scripts.folds import assign_folds
from scripts.prepare.hcc_tace_case import LABELS, Job, finished_case, prepare_case
from scripts.prepare.output import (
    NiftiCase,
    remove_leftovers,
    run_in_parallel,
    write_clinical_csv,
    write_dataset_json,
)
from scripts.prepare.report import write_report
from scripts.prepare.spreadsheet import Spreadsheet, read_clinical_table
from scripts.prepare.status import STATUS_FOLDER, remove_case

EXCLUDED = ("HCC_017", "HCC_008", "HCC_025", "HCC_009")
ID_COLUMN = "TCIA_ID"
_PATIENT = re.compile(r"HCC_\d+$")
_LAYOUT = "HCC-TACE-Seg/HCC_001/<study>/<series>/*.dcm"
_DEPTH = 5  # levels below the source at which patient folders are looked for


def prepare_hcc_tace(
    source: str,
    output: str,
    *,
    clinical: str | None = None,
    exclude: Sequence[str] = EXCLUDED,
    folds: int = 5,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Turns the download of HCC-TACE-Seg into NIfTI images and labels, dataset.json, clinical.csv and a report.

    Finds each patient's segmentation and the one CT volume it was drawn on (by the references in the files, never by
    folder order), and writes both on one grid: 0 background, 1 liver, 2 tumour, 3 portal vein, 4 abdominal aorta.
    Finished cases are skipped when the same command runs again, so it can be stopped at any time. A broken case is
    reported and left out.

    Args:
        source: the downloaded folder, holding HCC-TACE-Seg/HCC_001/<study>/<series>/*.dcm and the spreadsheet.
        output: the folder to write.
        clinical: the clinical table (.xlsx or .csv); by default the spreadsheet found in `source`.
        exclude: patients to drop, separated by commas; by default the four that the paper drops (HCC_017, HCC_008,
            HCC_025, HCC_009). An empty text keeps all.
        folds: number of folds for cross-validation; a patient is in one fold only.
        seed: seed of the folds.
        workers: processes; one needs about 1 GB for a series of 512x512x100.
        overwrite: make every case again, also the finished ones.
        progress: show a progress bar.

    Returns:
        dict: `output`, `kept` (cases), `excluded`, `broken` (case -> reason), `resumed` (cases done before), `report`.

    Raises:
        FileNotFoundError: no source folder, no patients in it, or no spreadsheet.
        ValueError: a malformed option or spreadsheet, or not a single case could be prepared.
    """
    root, target = Path(source).expanduser(), Path(output).expanduser()
    drop = _as_ids(exclude)
    patients = find_patients(root)
    table = read_clinical_table(root, clinical, id_column=ID_COLUMN)
    dropped = [patient for patient in patients if patient in drop]
    kept = [patient for patient in patients if patient not in drop]
    if not kept:
        raise ValueError(f"no patient is left: {root} holds {', '.join(patients)}, and --exclude drops all of them")
    fold_of = assign_folds(kept, folds=folds, seed=seed)  # broken cases too, so that mending one moves nobody else
    (target / STATUS_FOLDER).mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    for patient in dropped:
        remove_case(target, patient)
    jobs = {patient: Job(str(target), patient, tuple(map(str, patients[patient]))) for patient in kept}
    before = (
        {}
        if overwrite
        else {patient: record for patient, job in jobs.items() if (record := finished_case(job)) is not None}
    )
    todo = {patient: job for patient, job in jobs.items() if patient not in before}
    records = before | run_in_parallel(
        prepare_case, todo, workers=workers, progress=progress, description="prepare hcc_tace"
    )
    for patient, record in records.items():
        record["fold"] = fold_of[patient]
        if patient not in table.rows:
            record["warnings"] = [*record["warnings"], f"no row in {table.path.name}: every clinical value is unknown"]
    return _finish(root, target, [records[patient] for patient in kept], table, dropped, drop) | {
        "resumed": len(before)
    }


def _finish(
    source: Path,
    target: Path,
    records: Sequence[dict[str, Any]],
    table: Spreadsheet,
    dropped: Sequence[str],
    drop: Sequence[str],
) -> dict[str, Any]:
    """Writes what belongs to the whole cohort."""
    done = [record for record in records if record["status"] == "done"]
    broken = {record["case_id"]: record["reason"] for record in records if record["status"] == "broken"}
    synthetic = (source / "phantom_truth.json").is_file()
    name = "HCC-TACE-Seg" + " (synthetic)" * synthetic
    about = "Synthetic CT" if synthetic else "CT before TACE, doi 10.7937/TCIA.5FNA-0924, CC BY 4.0"
    write_clinical_csv(
        target / "clinical.csv",
        table.header,
        [table.rows[r["patient_id"]] for r in done if r["patient_id"] in table.rows],
    )
    write_dataset_json(
        target,
        [NiftiCase(r["case_id"], r["patient_id"], r["fold"]) for r in done],
        name=name,
        labels=LABELS,
        description=about,
    )
    report = target / "prepare-report.html"
    write_report(
        report,
        records=records,
        excluded=dropped,
        labels=LABELS,
        status_folder=target / STATUS_FOLDER,
        title=name,
        notes=_notes(records, dropped, drop, table),
    )
    if not done:
        first = next(iter(broken.items()))
        raise ValueError(
            f"none of the {len(records)} cases in {source} could be prepared; {first[0]}: {first[1]} "
            f"All reasons are in {report}"
        )
    return {
        "output": str(target),
        "kept": len(done),
        "excluded": list(dropped),
        "broken": broken,
        "report": str(report),
    }


def _notes(
    records: Sequence[dict[str, Any]], dropped: Sequence[str], drop: Sequence[str], table: Spreadsheet
) -> list[str]:
    notes = []
    if dropped:
        why = "as the paper on this data does" if set(drop) <= set(EXCLUDED) else "on request"
        notes.append(f"Dropped, {why}: {', '.join(dropped)}.")
    here = {record["patient_id"] for record in records} | set(dropped)
    without = len(set(table.rows) - here)
    if without:
        notes.append(f"{without} of the {len(table.rows)} patients in {table.path.name} have no images here.")
    return notes


def find_patients(source: Path) -> dict[str, list[Path]]:
    """Finds the patients of a download: folders named HCC_001 and so on, or else files with such a PatientID.

    Args:
        source: the downloaded folder.

    Returns:
        dict: patient id -> folders or files, sorted by id.

    Raises:
        FileNotFoundError: nothing there that looks like the collection.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; --source must be the downloaded folder, holding {_LAYOUT}")
    patients: dict[str, list[Path]] = {}
    level = [source]
    for _ in range(_DEPTH):
        below: list[Path] = []
        for folder in level:
            if _PATIENT.match(folder.name):
                patients.setdefault(folder.name, []).append(folder)
            else:
                below += sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        level = below
    patients = patients or _patients_by_header(source)
    if not patients:
        raise FileNotFoundError(
            f"no patients found in {source}; expected {_LAYOUT}, with folders named HCC_001, HCC_002, ..., or "
            "DICOM files whose PatientID is HCC_001, HCC_002, ..."
        )
    return dict(sorted(patients.items()))


def _patients_by_header(source: Path) -> dict[str, list[Path]]:
    patients: dict[str, list[Path]] = {}
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        try:
            patient = read_header(path).patient_id
        except Exception:  # not DICOM, or broken: nobody can be given it
            continue
        if _PATIENT.match(patient):
            patients.setdefault(patient, []).append(path)
    return patients


def _as_ids(exclude: Sequence[str] | str | None) -> tuple[str, ...]:
    if isinstance(exclude, str):
        exclude = [part.strip() for part in exclude.split(",") if part.strip()]
    for patient in exclude or ():
        if not _PATIENT.match(str(patient)):
            raise ValueError(f"--exclude names {patient!r}; expected patient ids such as HCC_017, separated by commas")
    return tuple(exclude or ())
