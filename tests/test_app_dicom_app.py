"""The whole app on a DICOM archive: masks, clinical rows by PatientID, what a training is given, masks as SEG."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from app_support import app, write_run
from dicom_support import LABELS, MemoryArchive, write_series
from fastapi import BackgroundTasks
from monailabel.interfaces.app import MONAILabelApp
from scripts import workflows

from monailabel_app.lib.datastore import dicom as module
from monailabel_app.lib.datastore.archive import ArchiveError
from monailabel_app.lib.server.dicom import infer
from monailabel_app.lib.trainers.dataset import labelled

URL = "http://archive/dicom-web"
OVERLAY = (
    "labels: [background, liver, tumour, portal vein, abdominal aorta]\nclass_ratios: [1, 1, 1, 1, 1]\nkeep_largest: []"
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    return {f"HCC_{n:03d}": (*write_series(root / str(n), n), root / str(n)) for n in (1, 2)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("table") / "clinical.csv"
    file.write_text("TCIA_ID,age,Sex\nHCC_001,50,1\nHCC_002,60,2\n")
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "labels.yaml").write_text(OVERLAY)
    return write_run(folder / "tiny", folder / "labels.yaml", table=table, spacing=16.0)


@pytest.fixture(scope="module")
def served(scans, run, table, tmp_path_factory):
    archive = MemoryArchive(**{patient: (uid, folder) for patient, (_, uid, folder) in scans.items()})

    def downloads(_):  # trap B
        raise AssertionError("MONAI Label downloads dcmqi")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Archive", lambda url: archive)
        patch.setattr(MONAILabelApp, "_download_dcmqi_tools", downloads)
        yield app(URL, bundle=run, clinical=table, output=tmp_path_factory.mktemp("out"))


@pytest.mark.parametrize("key", ["PatientID", "SeriesInstanceUID", "StudyInstanceUID", "ts"])
def test_what_the_archive_says_is_not_overwritten(served, scans, key):
    store, uid = served.datastore(), scans["HCC_001"][1]
    for update in (store.update_image_info, lambda name, info: store.update_label_info(name, "final", info)):
        with pytest.raises(ValueError, match=f"{key} cannot be set"):
            update(uid, {key: "../HCC_002"})


def test_start_asks_nobody_for_dcmqi(served):
    """B: MONAI Label's own start would; the fixture lets it fail there, and nothing else needs the program."""
    with pytest.raises(AssertionError, match="downloads dcmqi"):
        MONAILabelApp.init_datastore(served)
    assert not (Path(served.app_dir) / "bin").exists()


def test_mask_is_that_of_infer_on_the_series(served, scans, run, table, tmp_path):
    for patient, (_, uid, folder) in scans.items():
        found = served.infer({"model": "tiny", "image": uid})
        workflows.infer(str(folder), str(tmp_path / patient), run=str(run), clinical=str(table))
        expected = nib.load(next((tmp_path / patient).glob("*.nii.gz")))
        mask = nib.load(found["file"])
        assert np.asarray(expected.dataobj).any()
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert found["params"]["clinical"]["patient"] == patient
        assert found["params"]["clinical"]["source"] == "table"


def test_next_sample_fetches_nothing(served, scans):
    sample = served.next_sample({"strategy": "random", "client_id": "a"})
    assert sample["id"] in [uid for _, uid, _ in scans.values()]
    assert sample["path"].endswith(f"{sample['id']}.nii.gz")


def submit(served, scans, folder):
    for phantom, uid, _ in scans.values():
        file = folder / f"{uid}.nii.gz"
        nib.save(nib.Nifti1Image(phantom.label, phantom.geometry.affine()), file)
        served.datastore().save_label(uid, str(file), "final", {})


def test_training_gets_labels_and_patients(served, scans, tmp_path):
    submit(served, scans, tmp_path)
    cases = labelled(served.datastore(), ("HCC_001", "HCC_002"))
    assert {case["patient_id"] for case in cases} == set(scans)
    for case in cases:
        image, label = nib.load(case["image"]), nib.load(case["label"])
        assert image.shape == label.shape
        np.testing.assert_array_equal(np.asarray(label.dataobj), scans[case["patient_id"]][0].label)
    assert served.info()["datastore"]["completed"] == 2
    assert served.next_sample({"strategy": "random", "client_id": "b"}) == {}


def test_label_that_cannot_be_read_is_left_out_of_training(served, scans, tmp_path, monkeypatch, caplog):
    submit(served, scans, tmp_path)
    store = served.datastore()
    read, (_, broken, _) = store.get_label_uri, scans["HCC_001"]

    def fractional(name, tag):
        if name == broken:
            raise ValueError("the segmentation is of type 'FRACTIONAL'; expected BINARY")
        return read(name, tag)

    monkeypatch.setattr(store, "get_label_uri", fractional)
    assert [case["patient_id"] for case in labelled(store)] == ["HCC_002"]
    assert f"{broken} is left out" in caplog.text
    monkeypatch.setattr(store, "get_label_uri", gone)
    with pytest.raises(ArchiveError):
        labelled(store)


def gone(name, tag):
    raise ArchiveError("gone")


def test_mask_as_dicom_segmentation(served, scans):
    """Trap R: without label_info, and of no label's count."""
    _, uid, _ = scans["HCC_001"]
    mask = nib.load(served.infer({"model": "tiny", "image": uid})["file"])
    later = BackgroundTasks()
    given = {
        "params": "{}",
        "output": "dicom_seg",
        "background_tasks": later,
        "session_id": "",
        "user": SimpleNamespace(),
    }
    answer = infer(served, model="tiny", image=uid, **given)
    item = pydicom.dcmread(answer.path)
    assert [segment.SegmentLabel for segment in item.SegmentSequence] == list(LABELS)
    assert item.SeriesDescription == "nny-net mask (tiny, version 0)"
    present = {int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for frame in frames(item)}
    assert present == set(np.unique(np.asarray(mask.dataobj))) - {0}
    for task in later.tasks:
        task.func(*task.args)
    assert not Path(answer.path).exists()


def frames(item):
    return item.PerFrameFunctionalGroupsSequence
