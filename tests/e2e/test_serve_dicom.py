"""`nny serve-dicom` as a user starts it, without arguments: the archive, what Slicer does with it, and a restart."""

import json
import shutil

import itk
import nibabel as nib
import numpy as np
import pytest
import requests
from dicom_support import LABELS, dumped, needs_orthanc
from monailabel.client import MONAILabelClient
from ohif_support import Viewer, needs_chromium
from playwright.sync_api import sync_playwright
from scripts import workflows
from server_support import Server
from support import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PATIENTS = ["HCC_001", "HCC_002", "HCC_003", "HCC_004"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    needs_orthanc()
    return tmp_path_factory.mktemp("dicom")


def start(folder):
    return Server(cwd=folder, command=[str(ROOT / "nny"), "serve-dicom", "--port", "0"])


@pytest.fixture(scope="module")
def servers(folder):
    """The running server, last; the tests restart it."""
    servers = [start(folder)]
    yield servers
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def slicer(servers, tmp_path):
    return MONAILabelClient(servers[-1].address, tmpdir=str(tmp_path), client_id="annotator")


@pytest.fixture(scope="module")
def images(servers):
    """SeriesInstanceUID by PatientID."""
    found = json.loads(servers[-1].get("/datastore/?output=all"))["objects"]
    return {entry["image"]["info"]["PatientID"]: uid for uid, entry in found.items()}


def test_phantoms_are_served_and_none_is_labelled(slicer, images):
    assert sorted(images) == PATIENTS
    assert slicer.info()["datastore"] == {"total": 4, "completed": 0, "label_tags": {}}


def test_archive_answers_this_computer_with_a_password_only(folder):
    config = json.loads((folder / "work" / "serve-dicom" / "orthanc" / "orthanc.json").read_text())
    address = f"http://127.0.0.1:{config['HttpPort']}"
    assert requests.get(f"{address}/system", timeout=10).status_code == 401
    assert requests.get(f"{address}/system", auth=("nny", "guess"), timeout=10).status_code == 401
    assert config["RemoteAccessAllowed"] is False
    for name in ("orthanc.json", "password"):
        assert (folder / "work" / "serve-dicom" / "orthanc" / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ("PatientID=HCC_002", ["HCC_002"]),
        ("PatientID=*002*", ["HCC_002"]),
        ("PatientName=*003*&fuzzymatching=true", ["HCC_003"]),
        ("ModalitiesInStudy=CT&StudyDate=19990101-20000101", PATIENTS),
        ("StudyDate=20200101-20210101", []),
    ],
)
def test_filters_of_the_study_list(servers, filters, found):
    """As OHIF sends them: trap Q."""
    listed = json.loads(servers[-1].get(f"/proxy/dicom/qido/studies?limit=101&offset=0&{filters}"))
    assert sorted(study["00100020"]["Value"][0] for study in listed) == found


def test_ohif_shows_the_mask(servers, tmp_path):
    """And the pictures of the documentation."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=needs_chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        ohif = Viewer(browser, servers[-1].address, "phantom")
        ohif.open_list()
        ohif.page.wait_for_selector("text=HCC_001")
        ohif.page.locator("text=HCC_001").first.click()
        ohif.page.wait_for_timeout(1000)
        ohif.picture("list")
        ohif.page.locator("text=HCC_001").first.click()
        ohif.open_study("HCC_001")
        ohif.connect()
        before = ohif.coloured()
        ohif.run()
        assert ohif.coloured() > before + 0.01
        ohif.picture("mask")
        ohif.next_sample()
        ohif.picture("next_sample")
        assert not ohif.errors
        browser.close()


def test_slicer_walk(slicer, folder, images, tmp_path):
    sample = slicer.next_sample(next(iter(slicer.info()["strategies"])), {})
    assert sample["id"] in images.values()
    assert sample["PatientID"] in PATIENTS
    name = sample["PatientID"]
    file, told = slicer.infer("demo", sample["id"], {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert told["clinical"]["patient"] == name
    assert told["clinical"]["source"] == "table"
    mask = itk.array_from_image(itk.imread(file)).transpose()

    phantoms = folder / "work" / "serve-dicom" / "phantoms"
    series = next((phantoms / "HCC-TACE-Seg" / name).rglob("*.dcm")).parent
    table = next(phantoms.glob("*.xlsx"))
    workflows.infer(str(series), str(tmp_path / "cli"), clinical=str(table))
    expected = nib.load(next((tmp_path / "cli").glob("*.nii.gz")))
    np.testing.assert_array_equal(mask, np.asarray(expected.dataobj))

    corrected = np.where(mask == 2, 2, 0).astype(np.uint8)  # value 2 alone: trap F
    corrected[0, 0, 0] = 2
    nib.save(nib.Nifti1Image(corrected, expected.affine), tmp_path / "corrected.nii.gz")
    listed = [{"name": label, "idx": value} for label, value in LABELS.items()]
    for _ in range(2):
        slicer.save_label(sample["id"], str(tmp_path / "corrected.nii.gz"), params={"label_info": listed})
    assert slicer.info()["datastore"]["completed"] == 1
    file = slicer.download_label(sample["id"], "final")
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), corrected)
    again = slicer.next_sample(next(iter(slicer.info()["strategies"])), {})
    assert again["id"] != sample["id"]


def test_image_is_downloaded_as_slicer_does(servers, images, tmp_path):
    (tmp_path / "image.nii.gz").write_bytes(servers[-1].get(f"/datastore/image?image={images['HCC_001']}"))
    assert nib.load(tmp_path / "image.nii.gz").shape[:2] == (128, 128)


def test_mask_as_dicom_segmentation(servers, slicer, images, tmp_path):
    """Without label_info, which stock MONAI Label needs (trap R); and it is no label."""
    file = tmp_path / "mask.dcm"
    file.write_bytes(servers[-1].get(f"/infer/demo?image={images['HCC_001']}&output=dicom_seg", "POST"))
    assert dumped(file, "SegmentLabel") == list(LABELS)
    assert dumped(file, "SeriesDescription") == ["nny-net mask (demo, version 0)"]
    stored = slicer.info()["datastore"]["completed"]
    posted = requests.post(
        f"{servers[-1].address}/proxy/dicom/wado/studies",
        data=b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file.read_bytes() + b"\r\n--x--\r\n",
        headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'},
        timeout=60,
    )
    assert posted.status_code == 200, posted.text
    assert slicer.info()["datastore"]["completed"] == stored


def test_restart_keeps_scans_and_labels(servers, folder, slicer, images, tmp_path):
    before = slicer.info()["datastore"]
    labelled = next(
        uid
        for uid, entry in json.loads(servers[-1].get("/datastore/?output=all"))["objects"].items()
        if "final" in entry["labels"]
    )
    old = nib.load(slicer.download_label(labelled, "final"))
    old = np.asarray(old.dataobj)
    assert servers[-1].stop() == 0
    log = folder / "work" / "serve-dicom" / "orthanc" / "orthanc.log"
    assert "Orthanc has stopped" in log.read_text()
    shutil.rmtree(folder / "work" / "serve-dicom" / "annotate" / "studies")  # what can be fetched again
    servers.append(start(folder))
    slicer = MONAILabelClient(servers[-1].address, tmpdir=str(tmp_path), client_id="annotator")
    assert slicer.info()["datastore"] == before
    back = nib.load(slicer.download_label(labelled, "final"))
    np.testing.assert_array_equal(np.asarray(back.dataobj), old)


def test_server_was_quiet(servers):  # the last test of the fixture
    assert servers[-1].stop() == 0
    for server in servers:
        assert "Traceback" not in server.log.read_text()
