"""The annotation server with a DICOM archive and OHIF, on one computer: ``nny serve-dicom``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import fire
from monailabel.config import settings
from scripts.prepare.phantom import write_phantom_cohort
from scripts.workflows import DEMO_RUN

from monailabel_app.lib.orthanc import Orthanc, find_orthanc
from monailabel_app.serve import serve

WORK = "work/serve-dicom"
SEGMENTATIONS = "*-Segmentation-*"  # what the phantoms' folders of labels are called


def serve_dicom(
    scans: str | None = None,
    bundle: str = str(DEMO_RUN),
    clinical: str | None = None,
    modality: str = "CT",
    port: int = 8000,
    archive_port: int = 0,
    output: str = WORK,
    strategy: str | None = None,
    epochs: int = 50,
    held_out: float = 0.2,
    margin: float = 0.01,
) -> None:
    """Start Orthanc, put scans into it, and serve networks to OHIF and 3D Slicer, until Ctrl+C.

    What Orthanc holds, submitted labels and trained versions stay for the next start.

    Example: nny serve-dicom --scans dicom_folder --bundle runs/first --clinical patients.xlsx

    Args:
        scans: folder of DICOM files, searched with all folders below it, to put into the archive; segmentations in it
            count as labels. Without it, four synthetic patients (without labels) at the first start, and what the
            archive holds later.
        bundle: what segments, as for `nny serve`.
        clinical: table (xlsx or csv) with the patients' clinical variables by PatientID.
        modality: of the series to segment: CT, MR or PT.
        port: port of the server and of OHIF, on this computer only; 0 takes a free one.
        archive_port: port of Orthanc, on this computer only; by default a free one.
        output: folder that keeps everything: the archive, the cache, versions and scores.
        strategy: the active-learning strategy that clients are offered first.
        epochs: of a training that a client starts without saying how many.
        held_out: share of the patients that never train but judge new versions.
        margin: how much lower the Dice on held-out patients may be for a new version to be served.
    """
    find_orthanc()  # before anything is written
    folder = Path(output).expanduser().resolve()
    if modality not in ("CT", "MR", "PT"):
        raise ValueError(f"--modality is {modality!r}; expected CT, MR or PT.")
    if scans is not None and not Path(scans).exists():
        raise FileNotFoundError(f"There is no folder {scans}; --scans takes a folder of DICOM files.")
    with Orthanc(folder / "orthanc", archive_port) as archive:
        if scans is not None:
            print(f"{archive.upload(Path(scans).expanduser())} DICOM files of {scans} are in the archive.", flush=True)
        elif archive.count() == 0:
            archive.upload(_phantoms(folder / "phantoms"))
        if clinical is None and bundle == str(DEMO_RUN) and (folder / "phantoms").is_dir():
            clinical = str(next((folder / "phantoms").glob("*.xlsx")))
        _log_in(archive, modality)
        print(f"Orthanc: {archive.address}, user {archive.login[0]}, password in {folder / 'orthanc' / 'password'}")
        serve(
            studies=archive.dicomweb,
            bundle=bundle,
            clinical=clinical,
            port=port,
            output=str(folder / "annotate"),
            strategy=strategy,
            epochs=epochs,
            held_out=held_out,
            margin=margin,
        )


def _log_in(archive: Orthanc, modality: str) -> None:
    """Tell MONAI Label, in this process and in those that it starts, how to reach the archive."""
    settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD = archive.login
    settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER = {"Modality": modality}
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))


def _phantoms(folder: Path) -> Path:
    """Synthetic patients as DICOM series, with their table, written once."""
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write_phantom_cohort(str(part), cases=4, layout="tcia", seed=1, decoys=False)  # seed 0 is the demo network's
        for labels in list(part.rglob(SEGMENTATIONS)):
            shutil.rmtree(labels)
        part.rename(folder)
    return folder


if __name__ == "__main__":
    try:
        fire.Fire(serve_dicom, name="nny serve-dicom")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"nny: {error}")
