"""A DICOM archive as the datastore: what is labelled, what a label is, and what happens when something goes wrong."""

import threading
import time

import nibabel as nib
import numpy as np
import pytest
from dicom_support import LABELS, MemoryArchive, write_series
from monailabel.interfaces.exception import ImageNotFoundException
from scripts.prepare.phantom_dicom import write_seg as write_phantom_seg

from monailabel_app.lib.datastore import dicom as module
from monailabel_app.lib.datastore.archive import ArchiveError
from monailabel_app.lib.datastore.dicom import DicomStudies


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two patients: phantom, SeriesInstanceUID and folder by PatientID."""
    root = tmp_path_factory.mktemp("scans")
    made = {f"HCC_{n:03d}": (*write_series(root / str(n), n), root / str(n)) for n in (1, 2)}
    return made


@pytest.fixture
def archive(scans):
    return MemoryArchive(**{patient: (uid, folder) for patient, (_, uid, folder) in scans.items()})


@pytest.fixture
def uid(scans):
    return scans["HCC_001"][1]


def studies(archive, folder, values=LABELS):
    return DicomStudies(
        archive, folder, values=lambda: values, replaced=folder / "replaced", origin=lambda: ("demo", "7")
    )


@pytest.fixture
def store(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr(module, "SHARE", 0)
    monkeypatch.setattr(module, "WAIT", 10.0)
    return studies(archive, tmp_path / "cache")


def submitted(store, uid, voxels, folder, info=None, tag="final"):
    file = folder / f"label_{time.monotonic_ns()}.nii.gz"
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), nib.load(store.get_image_uri(uid)).affine), file)
    return store.save_label(uid, str(file), tag, info or {})


def label_of(store, uid):
    return np.asarray(nib.load(store.get_label_uri(uid, "final")).dataobj)


def test_images_are_series_with_their_patients(store, scans, uid):
    assert sorted(store.list_images()) == sorted(entry[1] for entry in scans.values())
    info = store.get_image_info(uid)
    assert (info["PatientID"], info["SeriesInstanceUID"]) == ("HCC_001", uid)
    assert info["name"] == f"{uid}.nii.gz"
    assert info["path"].endswith(f"{uid}.nii.gz")  # where it will be; nothing was fetched for it
    assert not any(what.startswith("download") for what in store.archive.asked)


def test_image_is_fetched_once(store, scans, uid):
    image = nib.load(store.get_image_uri(uid))
    np.testing.assert_array_equal(np.asarray(image.dataobj), scans["HCC_001"][0].image)
    store.get_image_uri(uid)
    assert store.archive.asked.count(f"download {uid}") == 1
    assert store.get_image_uri("1.2.3") == ""
    with pytest.raises(ImageNotFoundException):
        store.series("1.2.3")


def test_label_goes_to_the_archive_and_comes_back(store, scans, uid, tmp_path):
    phantom = scans["HCC_001"][0]
    submitted(store, uid, phantom.label, tmp_path, {"user": "Reader"})
    assert store.get_labeled_images() == [uid]
    assert uid not in store.get_unlabeled_images()
    assert store.status()["completed"] == 1
    item = next(iter(store.archive.stored.values()))
    assert item.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    assert item.SegmentSequence[0].SegmentAlgorithmName == "nny-net demo"
    assert item.ContentCreatorName == "Reader"
    np.testing.assert_array_equal(label_of(store, uid), phantom.label)


def test_label_is_read_back_from_the_archive_alone(store, archive, scans, uid, tmp_path):
    """Another server, without this one's cache: a mask that holds value 2 only, in few slices (traps E and F)."""
    voxels = np.where(scans["HCC_001"][0].label == 2, 2, 0)
    submitted(store, uid, voxels, tmp_path)
    other = studies(archive, tmp_path / "other")
    assert other.get_labeled_images() == [uid]
    file = other.get_label_uri(uid, "final")
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), voxels)
    np.testing.assert_array_equal(nib.load(file).affine, nib.load(other.get_image_uri(uid)).affine)
    assert other.get_label_uri(uid, "original") == ""


def test_resubmitted_label_counts_once_and_is_the_one(store, archive, scans, uid, tmp_path):
    """Trap H; and a server that has the older label in its cache notices that there is a newer one."""
    first, second = np.zeros((2, 32, 32, 12), np.uint8)
    first[3, 4, 5], second[10, 11, 3] = 1, 4
    submitted(store, uid, first, tmp_path)
    other = studies(archive, tmp_path / "other")
    np.testing.assert_array_equal(label_of(other, uid), first)
    submitted(store, uid, second, tmp_path)
    assert len(archive.stored) == 2  # an archive keeps what it was given
    for server in (store, other):
        assert server.get_labeled_images() == [uid]
        assert server.status()["completed"] == 1
        np.testing.assert_array_equal(label_of(server, uid), second)


def test_empty_label_is_a_label(store, uid, tmp_path):
    submitted(store, uid, np.zeros((32, 32, 12)), tmp_path)
    assert store.get_labeled_images() == [uid]
    assert not label_of(studies(store.archive, tmp_path / "other"), uid).any()


def test_new_label_counts_at_once_although_the_archive_was_asked_before(store, scans, uid, tmp_path, monkeypatch):
    """An answer that is older than the label must not take it away again (trap G)."""
    asked, answered = threading.Event(), threading.Event()
    real = store.archive.segs

    def slow():
        found = real()
        asked.set()
        assert answered.wait(20)
        return found

    monkeypatch.setattr(store.archive, "segs", slow)
    look = threading.Thread(target=store.refresh)
    look.start()
    assert asked.wait(20)
    monkeypatch.setattr(store.archive, "segs", real)
    submitted(store, uid, scans["HCC_001"][0].label, tmp_path)
    answered.set()
    look.join()
    assert store._datastore.objects[uid].labels


def test_deleted_segmentation_is_no_label_any_more(store, uid, tmp_path):
    submitted(store, uid, np.ones((32, 32, 12)), tmp_path)
    time.sleep(1.1)  # what was saved within the second of the answer counts as newer than it
    store.archive.stored.clear()
    assert store.get_labeled_images() == []
    assert store.get_label_uri(uid, "final") == ""


def test_masks_of_ours_that_nobody_corrected_are_no_labels(store, uid, tmp_path):
    mask = np.ones((32, 32, 12), np.uint8)
    store.archive.store(store.encode(uid, mask, {}, corrected=False))
    submitted(store, uid, mask, tmp_path, {"model": "other", "params": {"version": "3"}}, tag="original")
    assert store.get_labeled_images() == []
    described = {item.SeriesDescription for item in store.archive.stored.values()}
    assert described == {"nny-net mask (demo, version 7)", "nny-net mask (other, version 3)"}
    np.testing.assert_array_equal(np.asarray(nib.load(store.get_label_uri(uid, "original")).dataobj), mask)


def test_segmentations_of_others_are_labels_if_they_name_our_classes(store, scans, uid, tmp_path):
    import pydicom

    phantom, _, folder = scans["HCC_001"]
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    headers.sort(key=lambda item: float(item.SliceLocation))
    masks = {value: phantom.label == value for value in LABELS.values()}
    write_phantom_seg(tmp_path / "seg.dcm", masks, phantom.geometry, headers, series="clinic")
    store.archive.store(pydicom.dcmread(tmp_path / "seg.dcm"))
    assert store.get_labeled_images() == [uid]
    np.testing.assert_array_equal(label_of(store, uid), phantom.label)
    heart = studies(store.archive, tmp_path / "heart", {"left atrium": 1})
    assert heart.get_labeled_images() == []


def test_segmentations_are_asked_about_once(store, archive, uid, tmp_path):
    submitted(store, uid, np.ones((32, 32, 12)), tmp_path)
    for _ in range(3):
        store.get_labeled_images()
    studies(archive, tmp_path / "cache").get_labeled_images()  # a restart
    assert len([what for what in archive.asked if what.startswith("seg ")]) == 1
    (tmp_path / "cache" / "segmentations.json").write_text("{damaged")
    assert studies(archive, tmp_path / "cache").get_labeled_images() == [uid]


def test_new_scans_are_listed_and_those_that_left_are_not(store, scans):
    known = store.archive.series
    store.archive.series = {}
    assert store.list_images() == []
    store.archive.series = known
    assert len(store.list_images()) == 2


def test_archive_that_goes_away_changes_nothing(store, uid, tmp_path):
    submitted(store, uid, np.ones((32, 32, 12)), tmp_path)
    store.archive.fail = ("", ArchiveError("gone"))
    assert store.get_labeled_images() == [uid]
    assert len(store.list_images()) == 2
    before = label_of(store, uid)
    with pytest.raises(ArchiveError, match="gone"):
        submitted(store, uid, np.zeros((32, 32, 12)), tmp_path)
    np.testing.assert_array_equal(label_of(store, uid), before)


def test_slow_archive_is_not_waited_for(store, monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.05)
    store.list_images()
    held = threading.Event()
    monkeypatch.setattr(store.archive, "images", lambda: held.wait(5) and {})
    begin = time.perf_counter()
    assert len(store.list_images()) == 2
    assert time.perf_counter() - begin < 1
    held.set()


def test_archive_that_refuses_keeps_the_old_label(store, uid, tmp_path):
    old = np.ones((32, 32, 12))
    submitted(store, uid, old, tmp_path)
    store.archive.fail = ("store", ArchiveError("no room"))
    with pytest.raises(ArchiveError, match="no room"):
        submitted(store, uid, np.zeros((32, 32, 12)), tmp_path)
    np.testing.assert_array_equal(label_of(store, uid), old)
    assert not list((tmp_path / "cache" / "labels" / "final").glob(".*.part"))


def test_full_disk_sends_nothing(store, uid, tmp_path, monkeypatch):
    store.get_image_uri(uid)

    def full(volume):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "compressed", full)
    with pytest.raises(OSError, match="No space"):
        submitted(store, uid, np.ones((32, 32, 12)), tmp_path)
    assert store.archive.stored == {}
    assert store.get_labeled_images() == []


def test_download_that_breaks_off_leaves_nothing(store, uid, monkeypatch):
    store.archive.fail = ("download", ArchiveError("broke off"))
    with pytest.raises(ArchiveError, match="broke off"):
        store.get_image_uri(uid)
    store.archive.fail = None
    assert nib.load(store.get_image_uri(uid)).shape == (32, 32, 12)


def test_start_without_an_archive_says_how(tmp_path):
    archive = MemoryArchive()
    archive.fail = ("images", ArchiveError("The DICOM archive http://archive does not answer: refused"))
    with pytest.raises(ValueError, match=r"does not answer: refused.*--studies.*MONAI_LABEL_DICOMWEB_USERNAME"):
        studies(archive, tmp_path)


def test_what_only_the_archive_can_do_is_refused(store, uid, tmp_path):
    with pytest.raises(ValueError, match="STOW"):
        store.add_image("x", "x.nii.gz", {})
    with pytest.raises(ValueError, match="Delete the segmentation"):
        store.remove_label(uid, "final")
    with pytest.raises(ImageNotFoundException):
        store.save_label("1.2.3", "x", "final", {})
    with pytest.raises(ValueError, match="no tag"):
        store.save_label(uid, "x", "../final", {})


def test_two_models_with_one_value_are_told_apart_by_the_clients_names(archive, uid, tmp_path):
    store = studies(archive, tmp_path / "cache", {"liver": 1, "left atrium": 1})
    voxels = np.zeros((32, 32, 12), np.uint8)
    voxels[5, 5, 5] = 1
    submitted(store, uid, voxels, tmp_path, {"label_info": [{"name": "left atrium", "idx": 1}]})
    item = next(iter(archive.stored.values()))
    assert [segment.SegmentLabel for segment in item.SegmentSequence] == ["left atrium"]


def test_threads_that_ask_for_one_image_fetch_it_once(store, uid):
    threads = [threading.Thread(target=store.get_image_uri, args=(uid,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert store.archive.asked.count(f"download {uid}") == 1
