"""A DICOM series that is listed while its slices still arrive."""

import shutil

import nibabel as nib
import numpy as np
import pydicom
from dicom_support import LABELS, MemoryArchive, write_series

from monailabel_app.lib.datastore import dicom as module
from monailabel_app.lib.datastore.dicom import DicomStudies


def studies(archive, folder):
    return DicomStudies(
        archive, folder / "cache", values=lambda: LABELS, replaced=folder / "old", origin=lambda: ("demo", "7")
    )


def test_series_that_was_still_arriving_is_fetched_anew(tmp_path, monkeypatch):
    """Folder, image and a label that was read on its grid; an archive that counts otherwise is not asked for ever."""
    monkeypatch.setattr(module, "EVERY", 3600.0)  # looked at when told to
    folder = tmp_path / "series"
    phantom, uid = write_series(folder)
    archive = MemoryArchive(HCC_001=(uid, folder))
    store = studies(archive, tmp_path)
    headers = sorted(folder.iterdir(), key=lambda file: float(pydicom.dcmread(file).SliceLocation))
    arriving = tmp_path / "arriving"
    arriving.mkdir()
    for file in headers[:7]:
        shutil.copy(file, arriving)
    archive.series[uid] |= {"folder": arriving, "count": "7"}
    assert nib.load(store.get_image_uri(uid)).shape == (32, 32, 7)
    part = nib.Nifti1Image(phantom.label[..., :7], nib.load(store.get_image_uri(uid)).affine)
    nib.save(part, tmp_path / "label.nii.gz")
    store.save_label(uid, str(tmp_path / "label.nii.gz"), "final", {})
    archive.series[uid] |= {"folder": folder, "count": "12"}
    store.refresh()
    restarted = studies(archive, tmp_path)
    for server in (store, restarted):
        np.testing.assert_array_equal(np.asarray(nib.load(server.get_image_uri(uid)).dataobj), phantom.image)
        label = np.asarray(nib.load(server.get_label_uri(uid, "final")).dataobj)
        assert label.shape == (32, 32, 12)
        np.testing.assert_array_equal(label[..., :7], phantom.label[..., :7])
    assert archive.asked.count(f"download {uid}") == 2
    archive.series[uid]["count"] = "13"
    for _ in range(3):
        store.refresh()
        store.get_image_uri(uid)
    assert archive.asked.count(f"download {uid}") == 3
