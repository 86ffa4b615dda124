"""What the tests of `prepare hcc_tace` share."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from scripts.prepare import prepare_hcc_tace

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
KEPT = ["HCC_001", "HCC_002", "HCC_003", "HCC_004", "HCC_005", "HCC_006", "HCC_007", "HCC_010"]


def prepare(source, output, **options):
    return prepare_hcc_tace(str(source), str(output), **({"workers": 1, "progress": False} | options))


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def files_of(source, patient, folder="4.*"):
    """The slices that were segmented, by position; or the files of another folder."""
    found = list((source / "HCC-TACE-Seg" / patient).glob(f"*/{folder}/*.dcm"))
    if folder == "4.*":
        found = [p for p in found if p.name.startswith("2-")]
        found.sort(key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2]))
    return found


def edit(path, change):
    item = pydicom.dcmread(path)
    change(item)
    item.save_as(path)


def warnings_of(output, patient="HCC_001"):
    return json.loads((output / ".prepare" / f"{patient}.json").read_text())["warnings"]
