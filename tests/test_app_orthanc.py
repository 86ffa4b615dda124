"""`nny serve-dicom` before anything runs: what is missing is said, with the cure."""

import pytest

from monailabel_app import serve_dicom as module
from monailabel_app.lib import orthanc
from monailabel_app.serve_dicom import serve_dicom


def test_missing_orthanc_is_named_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(orthanc.shutil, "which", lambda *_, **__: None)
    with pytest.raises(FileNotFoundError, match="apt-get install --no-install-recommends orthanc orthanc-dicomweb"):
        serve_dicom(output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_missing_plugin_is_named_with_the_cure(monkeypatch):
    monkeypatch.setattr(orthanc.shutil, "which", lambda *_, **__: "/usr/sbin/Orthanc")
    monkeypatch.setattr(orthanc, "PLACES", ())
    with pytest.raises(FileNotFoundError, match="no DICOMweb plugin.*apt-get install"):
        orthanc.find_orthanc()


def test_bad_arguments_are_refused_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_orthanc", lambda: ("orthanc", "plugin"))
    with pytest.raises(ValueError, match="--modality is 'US'; expected CT, MR or PT"):
        serve_dicom(modality="US", output=str(tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        serve_dicom(scans=str(tmp_path / "nowhere"), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
