import os
import time

import nibabel as nib
import numpy as np
import pytest
from scripts.prepare.output import (
    remove_leftovers,
    run_in_parallel,
    write_clinical_csv,
    write_nifti_pair,
)

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


def square(value):
    return value * value


def die(value):
    os._exit(9)


def test_nifti_bytes_depend_on_the_content_alone(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    label = (image > 0).astype(np.uint8)
    write_nifti_pair(tmp_path / "a", "x", image, label, AFFINE)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    write_nifti_pair(tmp_path / "b", "x", image, label, AFFINE)
    for folder in ("imagesTr", "labelsTr"):
        assert (tmp_path / "a" / folder / "x.nii.gz").read_bytes() == (
            tmp_path / "b" / folder / "x.nii.gz"
        ).read_bytes()
    back = nib.load(tmp_path / "a" / "imagesTr" / "x.nii.gz")
    assert back.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(back.dataobj), image)
    np.testing.assert_array_equal(back.affine, AFFINE)
    np.testing.assert_array_equal(back.get_qform(), AFFINE)
    assert back.header.get_xyzt_units()[0] == "mm"


def test_image_and_label_of_different_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"image is \(2, 2, 2\) and the label \(2, 2, 3\)"):
        write_nifti_pair(tmp_path, "x", np.zeros((2, 2, 2), np.int16), np.zeros((2, 2, 3), np.uint8), AFFINE)


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    for path in (tmp_path / ".a.json.part", tmp_path / "imagesTr" / ".x.nii.gz.part", tmp_path / "mine.part"):
        path.touch()
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["mine.part"]


def test_clinical_cells_stay_as_they_are(tmp_path):
    write_clinical_csv(
        tmp_path / "c.csv",
        ["id", "a", "b", "c"],
        [["x", None, 1573.8799999999999, "Cisplatin, doxorubicin"], ["y", "NA", 5, "Stage_ 0-2"]],
    )
    expected = 'id,a,b,c\nx,,1573.8799999999999,"Cisplatin, doxorubicin"\ny,NA,5,Stage_ 0-2\n'
    assert (tmp_path / "c.csv").read_text() == expected


def test_parallel_results_keep_their_order():
    jobs = {str(i): i for i in range(5)}
    alone = run_in_parallel(square, jobs, workers=1, progress=False)
    assert list(alone.items()) == [(str(i), i * i) for i in range(5)]
    assert list(run_in_parallel(square, jobs, workers=2, progress=False).items()) == list(alone.items())
    assert run_in_parallel(square, {}, workers=2, progress=False) == {}


def test_a_killed_worker_is_explained():
    with pytest.raises(RuntimeError, match="worker process was killed .* fewer --workers"):
        run_in_parallel(die, {"a": 1, "b": 2}, workers=2, progress=False)
