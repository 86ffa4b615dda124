"""What the tests of the DICOM half share: small series with known labels, and an archive that is real or in memory."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scripts.prepare.phantom import PhantomOptions, make_phantom
from scripts.prepare.phantom_dicom import Coding, write_ct_series

from monailabel_app.lib.datastore.archive import COUNT, Seg, made
from monailabel_app.lib.datastore.dicom_seg import is_our_mask, segment_names
from monailabel_app.lib.orthanc import find_orthanc

LABELS = {"liver": 1, "tumour": 2, "portal vein": 3, "abdominal aorta": 4}


def needs_orthanc():
    try:
        find_orthanc()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def write_series(folder, index=1, matrix=32, slices=12):
    """A phantom as one CT series, without its labels: the phantom, and its SeriesInstanceUID."""
    phantom = make_phantom(index, seed=1, options=PhantomOptions(matrix=matrix, slices=slices, slice_spacing=16.0))
    headers = write_ct_series(
        folder,
        phantom.image,
        phantom.geometry,
        patient_id=phantom.patient_id,
        study=f"study.{index}",
        series=f"series.{index}",
        number=4,
        description="portal venous",
        date="19991130",
        coding=Coding(True, -1024, bool(index % 2)),
        rng=np.random.default_rng(index),
    )
    return phantom, str(headers[0].SeriesInstanceUID)


class MemoryArchive:
    """Stands in for `Archive`: series in folders, segmentations in memory."""

    url = "http://archive/dicom-web"

    def __init__(self, **series):
        self.series = {uid: {"PatientID": patient, "folder": folder} for patient, (uid, folder) in series.items()}
        self.stored, self.asked, self.fail = {}, [], None

    def images(self):
        self._answer("images")
        return {
            uid: {
                "PatientID": entry["PatientID"],
                "SeriesInstanceUID": uid,
                "StudyInstanceUID": f"1.{uid}",
                COUNT: entry.get("count", ""),
            }
            for uid, entry in self.series.items()
        }

    def segs(self):
        self._answer("segs")
        return {uid: str(item.StudyInstanceUID) for uid, item in self.stored.items()}

    def seg(self, study, uid):
        self._answer(f"seg {uid}")
        item = self.stored[uid]
        image = str(item.ReferencedSeriesSequence[0].SeriesInstanceUID)
        return Seg(uid, study, image, tuple(segment_names(item)), made(item), is_our_mask(item))

    def download(self, study, uid, folder):
        self._answer(f"download {uid}")
        if uid in self.stored:
            folder.mkdir(parents=True)
            self.stored[uid].save_as(folder / "1.dcm", write_like_original=False)
        else:
            shutil.copytree(self.series[uid]["folder"], folder, dirs_exist_ok=True)
        return folder

    def store(self, item):
        self._answer("store")
        self.stored[str(item.SeriesInstanceUID)] = item

    def _answer(self, what):
        self.asked.append(what)
        if self.fail is not None and what.startswith(self.fail[0]):
            raise self.fail[1]


def dumped(file, *tags):
    """What dcmtk, which shares no code with ours, reads of a file: the values of some attributes, in their order."""
    if shutil.which("dcmdump") is None:
        pytest.skip("dcmdump is not installed: apt-get install dcmtk")
    command = ["dcmdump", *(part for tag in tags for part in ("+P", tag)), "+s", "-Un", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split("[", 1)[1].split("]")[0].strip() for line in lines if "[" in line]


def by_dcmqi(file, folder, reference):
    """What dcmqi and its DCMTK, which share no code with ours, read of a segmentation.

    Args:
        file: the DICOM segmentation.
        folder: made, for what dcmqi writes.
        reference: the image, for its grid.

    Returns:
        The label map on the image's grid, 0 where there is no segment; and what is said of each segment, by its number.
    """
    folder.mkdir()
    tool = Path(sys.executable).parent / "segimage2itkimage"
    command = [str(tool), "--inputDICOM", str(file), "--outputDirectory", str(folder), "-t", "nii", "-p", "seg"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = json.loads((folder / "seg-meta.json").read_text())["segmentAttributes"]
    told = {entry["labelID"]: entry for entries in listed for entry in entries}
    label = np.zeros(reference.shape, np.uint8)
    for number in told:
        if not (folder / f"seg-{number}.nii.gz").is_file():  # a segment without a voxel
            continue
        mask = nib.load(folder / f"seg-{number}.nii.gz")  # cropped to the slices that the segmentation has
        place = np.linalg.inv(reference.affine) @ mask.affine
        at = np.argwhere(np.asarray(mask.dataobj)) @ place[:3, :3].T + place[:3, 3]
        assert not at.size or np.abs(at - np.rint(at)).max() < 0.05, "another grid"
        at = tuple(np.rint(at).astype(int).T)
        assert not label[at].any(), "segments overlap"
        label[at] = number
    return label, told


@contextlib.contextmanager
def saved(item, folder):
    """A dataset as a file."""
    file = folder / f"{item.SOPInstanceUID}.dcm"
    item.save_as(file, write_like_original=False)
    yield file


def reread(item, folder):
    """A dataset as it comes back from its file."""
    with saved(item, folder) as file:
        return pydicom.dcmread(file)
