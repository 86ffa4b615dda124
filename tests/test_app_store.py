"""The folder of studies: labels that are checked, replaced in one step, and never lost."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import threading
import time

import nibabel as nib
import numpy as np
import pytest
from monailabel.interfaces.exception import ImageNotFoundException
from support import write_nifti

from monailabel_app.lib.datastore.labels import read_label
from monailabel_app.lib.datastore.local import StudyFolder

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])
CLASSES = {"liver": 1, "tumour": 2}


def ball(value=1, shape=(8, 9, 10)):
    voxels = np.zeros(shape, np.uint8)
    voxels[2:5, 2:6, 3:7] = value
    return voxels


@pytest.fixture
def studies(tmp_path):
    for name in ("a", "b"):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", np.ones((8, 9, 10), np.float32), AFFINE)
    return tmp_path / "images"


def store(studies, watch=False):
    return StudyFolder(str(studies), values=lambda: CLASSES, replaced=studies / "nny" / "replaced", watch=watch)


def submit(datastore, tmp_path, voxels, image="a", tag="final", info=None, affine=AFFINE):
    file = write_nifti(tmp_path / "sent.nii.gz", voxels, affine)
    return datastore.save_label(image, str(file), tag, info or {})


def saved(studies, image="a"):
    return np.asarray(nib.load(studies / "labels" / "final" / f"{image}.nii.gz").dataobj)


class TestLabels:
    def test_saved_label_is_listed_at_once_and_after_a_restart(self, studies, tmp_path):
        datastore = store(studies)
        assert submit(datastore, tmp_path, ball(2), info={"client_id": "me"}) == "a"
        np.testing.assert_array_equal(saved(studies), ball(2))
        for reopened in (datastore, store(studies)):
            assert reopened.get_labeled_images() == ["a"]
            assert reopened.get_unlabeled_images() == ["b"]
            assert reopened.status() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
            assert reopened.get_label_info("a", "final")["client_id"] == "me"

    def test_second_client_replaces_the_label_and_the_first_is_kept(self, studies, tmp_path):
        """H: two clients label the same case; one case counts, and neither label is lost."""
        datastore = store(studies)
        submit(datastore, tmp_path, ball(1))
        submit(datastore, tmp_path, ball(2))
        np.testing.assert_array_equal(saved(studies), ball(2))
        assert datastore.status()["completed"] == 1
        (kept,) = (studies / "nny" / "replaced" / "final").iterdir()
        np.testing.assert_array_equal(np.asarray(nib.load(kept).dataobj), ball(1))

    def test_segments_of_slicer_are_translated_by_name(self, studies, tmp_path):
        voxels = ball(1)
        voxels[0, 0, 0] = 2
        named = {"label_info": [{"name": "tumour", "idx": 1}, {"name": "Liver", "idx": 2}]}
        submit(store(studies), tmp_path, voxels, info=named)
        expected = ball(2)
        expected[0, 0, 0] = 1
        np.testing.assert_array_equal(saved(studies), expected)

    def test_segments_that_slicer_left_out_are_not_counted(self, studies, tmp_path):
        """Its `idx` counts a background segment that it does not send; its values do not."""
        voxels = ball(1)
        voxels[0, 0, 0] = 2
        named = {"label_info": [{"name": "tumour", "idx": 2}, {"name": "liver", "idx": 3}]}
        submit(store(studies), tmp_path, voxels, info=named)
        assert saved(studies)[0, 0, 0] == 1
        assert saved(studies).max() == 2

    def test_same_grid_in_other_axes_is_turned_back(self, studies, tmp_path):
        turned = nib.Nifti1Image(ball(2), AFFINE).as_reoriented([[2, -1], [0, 1], [1, 1]])
        submit(store(studies), tmp_path, np.asarray(turned.dataobj), affine=turned.affine)
        np.testing.assert_array_equal(saved(studies), ball(2))
        np.testing.assert_allclose(nib.load(studies / "labels" / "final" / "a.nii.gz").affine, AFFINE)

    def test_nrrd_of_slicer(self, studies, tmp_path):
        from monailabel.transform.writer import write_itk

        write_itk(ball(2), str(tmp_path / "sent.nrrd"), AFFINE, np.uint8, True)
        store(studies).save_label("a", str(tmp_path / "sent.nrrd"), "final", {})
        np.testing.assert_array_equal(saved(studies), ball(2))

    @pytest.mark.parametrize(
        ("voxels", "affine", "message"),
        [
            (ball(shape=(8, 9, 11)), AFFINE, "another grid than its image a.nii.gz: shape .8, 9, 11.*expected shape"),
            (ball(), np.diag([-2.0, 2.0, 3.5, 1.0]), "another grid"),
            (ball(), AFFINE + np.eye(4, k=3), "another grid"),
            (ball(3), AFFINE, "holds 3, which is no class. There are 0: background, 1: liver, 2: tumour"),
            (ball().astype(np.float32) * 0.5, AFFINE, "expected whole numbers"),
        ],
    )
    def test_refused(self, studies, tmp_path, voxels, affine, message):
        datastore = store(studies)
        submit(datastore, tmp_path, ball(1))
        with pytest.raises(ValueError, match=message):
            submit(datastore, tmp_path, voxels, affine=affine)
        np.testing.assert_array_equal(saved(studies), ball(1))

    def test_unknown_segment(self, studies, tmp_path):
        with pytest.raises(ValueError, match=r"segment 'livr' \(did you mean 'liver'"):
            submit(store(studies), tmp_path, ball(1), info={"label_info": [{"name": "livr", "idx": 1}]})

    @pytest.mark.parametrize("content", [b"no image", b""])
    def test_corrupt_upload(self, studies, tmp_path, content):
        (tmp_path / "sent.nii.gz").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read.*nothing was saved"):
            store(studies).save_label("a", str(tmp_path / "sent.nii.gz"), "final", {})

    def test_cut_upload(self, studies, tmp_path):
        file = write_nifti(
            tmp_path / "sent.nii.gz", np.random.default_rng(0).integers(0, 2, (8, 9, 10)).astype(np.uint8)
        )
        file.write_bytes(file.read_bytes()[:-60])
        with pytest.raises(ValueError, match="cannot be read"):
            store(studies).save_label("a", str(file), "final", {})

    def test_unknown_image_and_tag(self, studies, tmp_path):
        with pytest.raises(ImageNotFoundException):
            submit(store(studies), tmp_path, ball(), image="../a")
        with pytest.raises(ValueError, match="no tag '../../x'"):
            submit(store(studies), tmp_path, ball(), tag="../../x")

    def test_values_are_kept_for_networks_of_any_classes(self, tmp_path):
        image = write_nifti(tmp_path / "i.nii.gz", np.zeros((8, 9, 10), np.float32), AFFINE)
        label = write_nifti(tmp_path / "l.nii.gz", ball(7), AFFINE)
        assert np.asarray(read_label(label, image, {}, {}).dataobj).max() == 7


class TestImages:
    @pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "x" * 300, "a\\b"])
    def test_id_that_is_no_plain_name(self, studies, tmp_path, name):
        file = write_nifti(tmp_path / "new.nii.gz", np.ones((4, 4, 4), np.float32))
        with pytest.raises(ValueError, match="not a plain name"):
            store(studies).add_image(name, str(file), {})
        assert not list(tmp_path.glob("**/out*"))

    def test_added_image_is_listed(self, studies, tmp_path):
        file = write_nifti(tmp_path / "new.nii.gz", np.ones((4, 4, 4), np.float32))
        datastore = store(studies)
        datastore.add_image("c", str(file), {})
        assert datastore.list_images() == ["a", "b", "c"]
        with pytest.raises(ValueError, match="already"):
            datastore.add_image("a", str(file), {})
        with pytest.raises(ValueError, match="out of the folder"):
            datastore.remove_image("a")

    def test_files_that_come_and_go_are_noticed(self, studies, tmp_path):
        datastore = store(studies, watch=True)
        write_nifti(tmp_path / "c.nii.gz", np.ones((4, 4, 4), np.float32)).rename(studies / "c.nii.gz")
        (studies / "b.nii.gz").unlink()
        end = time.monotonic() + 10
        while datastore.list_images() != ["a", "c"]:
            assert time.monotonic() < end, datastore.list_images()
            time.sleep(0.05)
        datastore._observer.stop()

    def test_damaged_index_says_what_to_do(self, studies):
        store(studies)
        (studies / "datastore_v2.json").write_text('{"name": "new')
        with pytest.raises(ValueError, match="datastore_v2.json is damaged.*Move it away"):
            store(studies)


class TestAccidents:
    def test_full_disk_keeps_the_old_label(self, studies, tmp_path):
        datastore = store(studies)
        submit(datastore, tmp_path, ball(1))
        big = np.random.default_rng(0).integers(0, 3, (8, 9, 10)).astype(np.uint8)
        sent = write_nifti(tmp_path / "sent.nii.gz", big, AFFINE)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes a file
            with pytest.raises(OSError) as error:
                datastore.save_label("a", str(sent), "final", {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert error.value.errno == errno.EFBIG
        np.testing.assert_array_equal(saved(studies), ball(1))
        assert [f.name for f in (studies / "labels" / "final").iterdir()] == ["a.nii.gz"]
        np.testing.assert_array_equal(saved(studies), ball(1))
        submit(datastore, tmp_path, big)
        np.testing.assert_array_equal(saved(studies), big)

    def test_label_whose_entry_could_not_be_written_is_found_again(self, studies, tmp_path, monkeypatch):
        datastore = store(studies)

        def full(objects):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(datastore, "_swap", full)
        with pytest.raises(OSError, match="No space"):
            submit(datastore, tmp_path, ball(2))
        assert store(studies).get_labeled_images() == ["a"]
        np.testing.assert_array_equal(saved(studies), ball(2))

    def test_kill_during_save_leaves_a_whole_label(self, studies, tmp_path):
        """Killed while it saves two labels in turn: one of them is there, whole, and the index reads."""
        for value in (1, 2):
            write_nifti(tmp_path / f"{value}.nii.gz", ball(value), AFFINE)

        def save_for_ever():
            datastore = store(studies)
            while True:
                for value in "12":
                    datastore.save_label("a", str(tmp_path / f"{value}.nii.gz"), "final", {})

        for pause in (0.2, 0.33, 0.47):
            process = multiprocessing.get_context("fork").Process(target=save_for_ever)
            process.start()
            while not (studies / "labels" / "final" / "a.nii.gz").exists():
                time.sleep(0.01)
            time.sleep(pause)
            process.kill()
            process.join()
        assert saved(studies).max() in (1, 2)
        json.loads((studies / "datastore_v2.json").read_text())
        datastore = store(studies)
        assert datastore.get_labeled_images() == ["a"]
        submit(datastore, tmp_path, ball(1))

    def test_many_threads_and_two_processes_lose_nothing(self, studies, tmp_path):
        datastore, other = store(studies), store(studies)  # two processes hold the same folder
        sent = write_nifti(tmp_path / "sent.nii.gz", ball(1), AFFINE)
        problems = []

        def work(place, number):
            try:
                for step in range(10):
                    place.update_image_info("b", {f"{number}-{step}": step})
                    assert len(place.list_images()) == 2
                    place.status()
                place.save_label("a", str(sent), "final", {"by": number})
            except Exception as error:
                problems.append(error)

        threads = [
            threading.Thread(target=work, args=(p, n)) for n, p in enumerate((datastore, other, datastore, other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        found = store(studies).get_image_info("b")
        assert {f"{n}-{step}" for n in range(4) for step in range(10)} <= set(found)
        assert len(list((studies / "nny" / "replaced" / "final").iterdir())) == 3

    def test_temporary_files_are_no_images(self, studies):
        (studies / ".a.nii.gz").write_bytes(b"")
        (studies / ".b.nii.gz.part").write_bytes(b"")
        assert store(studies).list_images() == ["a", "b"]
        assert os.path.exists(store(studies).get_image_uri("a"))
