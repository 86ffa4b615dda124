"""A synthetic cohort that looks like the real download of HCC-TACE-Seg, so that everything can start from it.

Anatomy, clinical rows and files are drawn from the seed and the patient's number alone: the same seed gives the same
bytes, and patient 7 is the same in a cohort of 10 and of 100.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.folds import assign_folds
from scripts.prepare.output import (
    NiftiCase,
    run_in_parallel,
    write_clinical_csv,
    write_dataset_json,
    write_json,
    write_nifti_pair,
)
from scripts.prepare.phantom_anatomy import EXTENT_MM, FIELD_OF_VIEW_MM, Anatomy, draw_anatomy
from scripts.prepare.phantom_clinical import COLUMNS, MALIGNANT_RATE, SPREADSHEET, draw_row, write_spreadsheet
from scripts.prepare.phantom_dicom import Coding, Geometry, write_ct_series, write_seg
from scripts.prepare.phantom_render import LABELS, render
from scripts.prepare.phantom_shapes import Grid

COLLECTION = "HCC-TACE-Seg"
_STREAMS = {"anatomy": 0, "image": 1, "clinical": 2, "files": 3, "decoys": 4}


@dataclass(frozen=True)
class PhantomOptions:
    """Size of the phantoms; see :func:`write_phantom_cohort`."""

    matrix: int = 128
    pixel_spacing: float | None = None
    slice_spacing: float = 5.0
    slices: int | None = None
    noise: float = 12.0
    decoys: bool = True


@dataclass(frozen=True)
class Phantom:
    """One synthetic patient: image int16 (X, Y, Z) HU, label uint8 (X, Y, Z), where they lie, and the clinical row."""

    patient_id: str
    image: np.ndarray
    label: np.ndarray
    geometry: Geometry
    row: dict[str, Any]
    malignant: bool
    anatomy: Anatomy
    grid: Grid


def make_phantom(
    index: int, *, seed: int = 0, options: PhantomOptions | None = None, malignant: bool | None = None
) -> Phantom:
    """Makes one synthetic patient in memory.

    Args:
        index: number of the patient, from 1; ``HCC_001`` is 1.
        seed: seed of the cohort.
        options: size and noise.
        malignant: whether the indeterminate nodules are tumour; drawn (65 %) by default. Does not change the image.

    Returns:
        Phantom: image, label, geometry and clinical row.
    """
    options = options or PhantomOptions()
    streams = {name: np.random.default_rng([seed, index, number]) for name, number in _STREAMS.items()}
    anatomy = draw_anatomy(streams["anatomy"])
    grid, geometry = _place(options, streams["files"])
    drawn = bool(streams["clinical"].random() < MALIGNANT_RATE)
    malignant = drawn if malignant is None else bool(malignant)
    image, label = render(anatomy, grid, streams["image"], malignant=malignant, noise=options.noise)
    patient_id = f"HCC_{index:03d}"
    largest = 2 * max(blob.radius for blob in anatomy.tumours) / 10
    row = draw_row(patient_id, streams["clinical"], malignant=malignant, tumour_cm=largest)
    return Phantom(patient_id, image, label, geometry, row, malignant, anatomy, grid)


def write_phantom_cohort(
    output: str,
    *,
    cases: int = 20,
    layout: str = "tcia",
    seed: int = 0,
    matrix: int = 128,
    pixel_spacing: float | None = None,
    slice_spacing: float = 5.0,
    slices: int | None = None,
    noise: float = 12.0,
    decoys: bool = True,
    folds: int = 5,
    workers: int = 2,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes a synthetic cohort of abdominal CT with clinical data, for demos, tests and experiments.

    Args:
        output: folder to write; must not exist or be empty.
        cases: number of patients, at least 1. The ids are HCC_001, HCC_002, ...; `prepare` drops four of them by
            default, as the paper does (HCC_008, HCC_009, HCC_017, HCC_025): 44 cases give 40.
        layout: `tcia` writes what the real download holds (DICOM CT, DICOM SEG, spreadsheet), for `prepare hcc_tace`;
            `msd` writes the prepared folder directly (NIfTI, dataset.json, clinical.csv), with all patients.
        seed: the same seed gives the same files.
        matrix: rows and columns of a slice; the real data has 512.
        pixel_spacing: mm; by default 384 mm / matrix, varied by 6 % from patient to patient.
        slice_spacing: distance of the slices in mm.
        slices: number of slices; by default what covers 200 mm, varied by 2.
        noise: standard deviation of the image noise in HU.
        decoys: also write series that `prepare` must not take (other phases, a study after the procedure).
        folds: number of folds for layout `msd`.
        workers: processes.
        progress: show a progress bar.

    Returns:
        dict: `output`, `cases`, and `malignant`, the number of patients whose indeterminate nodules are tumour.
    """
    if layout not in ("tcia", "msd"):
        raise ValueError(f"layout is {layout!r}; expected 'tcia' (as downloaded) or 'msd' (as prepared)")
    _check_positive(cases=cases, matrix=matrix, slice_spacing=slice_spacing, pixel_spacing=pixel_spacing, slices=slices)
    if matrix < 32:
        raise ValueError(f"matrix is {matrix}; expected at least 32, or no tumour would be visible")
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder; choose another --output or delete it first")
    target.mkdir(parents=True, exist_ok=True)
    options = PhantomOptions(int(matrix), pixel_spacing, slice_spacing, slices, noise, decoys)
    write = _write_tcia_case if layout == "tcia" else _write_msd_case
    jobs = {f"HCC_{i:03d}": (str(target), i, seed, options) for i in range(1, int(cases) + 1)}
    done = run_in_parallel(write, jobs, workers=workers, progress=progress, description=f"phantoms ({layout})")
    truth = {patient: done[patient]["truth"] for patient in jobs}
    rows = [done[patient]["row"] for patient in jobs]
    if layout == "tcia":
        write_spreadsheet(target / SPREADSHEET, rows)
    else:
        fold_of = assign_folds(list(jobs), folds=folds, seed=seed)
        write_clinical_csv(target / "clinical.csv", list(COLUMNS), [[row[name] for name in COLUMNS] for row in rows])
        cohort = [NiftiCase(case_id=p, patient_id=p, fold=fold_of[p]) for p in jobs]
        write_dataset_json(
            target,
            cohort,
            name="HCC-TACE phantom",
            labels=LABELS,
            description=f"Synthetic abdominal CT with clinical data, seed {seed}",
        )
    write_json(target / "phantom_truth.json", {"seed": seed, "patients": truth})
    return {"output": str(target), "cases": len(jobs), "malignant": sum(t["malignant"] for t in truth.values())}


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value!r}; expected a number above 0")


def _place(options: PhantomOptions, rng: np.random.Generator) -> tuple[Grid, Geometry]:
    """Draws the grid of a patient and where the scanner's table had it; one in five lies a little tilted."""
    base = options.pixel_spacing or FIELD_OF_VIEW_MM / options.matrix
    factor = rng.uniform(0.97, 1.06)
    pixel = float(round(base if options.pixel_spacing else base * factor, 6))
    count = options.slices or max(4, math.ceil(EXTENT_MM / options.slice_spacing) + int(rng.integers(-2, 3)))
    tilt = math.radians(rng.uniform(3, 8)) * (rng.random() < 0.2)
    row = (1.0, 0.0, 0.0)
    column = (0.0, round(math.cos(tilt), 6), round(math.sin(tilt), 6))
    corner = -pixel * (options.matrix - 1) / 2
    height = round(float(rng.uniform(-700, 100)), 3)
    origin = (round(corner + rng.normal(0, 4), 3), round(corner + rng.normal(0, 10), 3), height)
    grid = Grid((options.matrix, options.matrix, count), (pixel, pixel, options.slice_spacing))
    return grid, Geometry(origin, row, column, (pixel, pixel), options.slice_spacing)


def _write_msd_case(job: tuple[str, int, int, PhantomOptions]) -> dict[str, Any]:
    output, index, seed, options = job
    phantom = make_phantom(index, seed=seed, options=options)
    write_nifti_pair(Path(output), phantom.patient_id, phantom.image, phantom.label, phantom.geometry.affine())
    return {"row": phantom.row, "truth": _truth(phantom)}


def _write_tcia_case(job: tuple[str, int, int, PhantomOptions]) -> dict[str, Any]:
    """Writes a patient as the archive hands it out; folder and file names are no guide to what is inside."""
    output, index, seed, options = job
    phantom = make_phantom(index, seed=seed, options=options)
    rng = np.random.default_rng([seed, index, _STREAMS["decoys"]])
    base, tag = Path(output) / COLLECTION / phantom.patient_id, f"{seed}.{index}"
    number = int(rng.integers(10000, 99999))
    study = base / f"11-30-1999-NA-CT ABDOMEN-{number}"
    series = study / f"4.000000-Recon 3 LIVER 2 PHASE-{number}"
    coding = (Coding(True, -1024, False), Coding(True, 0, True), Coding(False, -1024, True))[int(rng.integers(3))]
    common: dict[str, Any] = {"patient_id": phantom.patient_id, "rng": rng, "coding": coding}
    portal: dict[str, Any] = {
        "study": f"{tag}.pre",
        "series": f"{tag}.portal",
        "number": 4,
        "date": "19991130",
        "description": "Recon 3: LIVER 2 PHASE",
    }
    other = float(rng.random()) if options.decoys else 1.0
    if other < 0.6:  # another phase comes first: in a folder of its own or, in some, in the same series
        image, _ = render(phantom.anatomy, phantom.grid, rng, malignant=False, phase="arterial", noise=options.noise)
        folder, about = series, portal
        if other >= 0.2:
            folder = study / f"3.000000-Recon 2 LIVER 2 PHASE-{number % 9000 + 10000}"
            about = portal | {"series": f"{tag}.arterial", "number": 3, "description": "Recon 2: LIVER 2 PHASE"}
        write_ct_series(folder, image, phantom.geometry, **about, **common)
    headers = write_ct_series(series, phantom.image, phantom.geometry, **portal, **common, acquisition=2)
    segments = {value: phantom.label == value for value in LABELS if value}
    if rng.random() < 0.5:  # some readers drew the liver with the tumour in it
        segments[1] = segments[1] | segments[2]
    write_seg(
        study / f"300.000000-Segmentation-{number % 7000 + 10000}" / "1-1.dcm",
        segments,
        phantom.geometry,
        headers,
        series=f"{tag}.seg",
    )
    if options.decoys and rng.random() < 0.5:  # the study after the procedure; its folder comes first, too
        image, _ = render(phantom.anatomy, phantom.grid, rng, malignant=False, phase="post", noise=options.noise)
        x, y, z = phantom.geometry.origin
        moved = replace(phantom.geometry, origin=(x + 3.0, y - 7.5, z + 41.0))
        write_ct_series(
            base / f"01-15-2000-NA-CT ABDOMEN-{number // 2}" / "2.000000-POST TACE LIVER-20417",
            image,
            moved,
            study=f"{tag}.post",
            series=f"{tag}.post",
            number=2,
            date="20000115",
            description="POST TACE LIVER",
            **common,
        )
    return {"row": phantom.row, "truth": _truth(phantom) | {"series": headers[0].SeriesInstanceUID}}


def _truth(phantom: Phantom) -> dict[str, Any]:
    ml = float(np.prod(phantom.grid.spacing)) / 1000
    return {
        "malignant": phantom.malignant,
        "definite_tumours_mm": [round(2 * blob.radius, 1) for blob in phantom.anatomy.tumours],
        "indeterminate_nodules_mm": [round(2 * blob.radius, 1) for blob in phantom.anatomy.nodules],
        "volumes_ml": {LABELS[v]: round(float((phantom.label == v).sum()) * ml, 2) for v in LABELS if v},
    }
