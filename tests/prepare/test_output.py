import os
import time
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from scripts.prepare.output import (
    assign_folds,
    remove_leftovers,
    replacing,
    run_in_parallel,
    write_clinical_csv,
    write_nifti_pair,
)

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


def square(value):
    return value * value


def fail_halfway(target):
    with replacing(target) as part:
        part.write_text("half")
        raise RuntimeError


def die(value):
    os._exit(9)


@pytest.mark.parametrize(("patients", "folds"), [(23, 5), (101, 5), (10, 2), (3, 5)])
def test_folds_are_balanced_and_seeded(patients, folds):
    names = [f"HCC_{i:03d}" for i in range(patients)]
    dealt = assign_folds(names + names[:3], folds=folds, seed=0)
    sizes = Counter(dealt.values())
    assert set(dealt) == set(names)
    assert max(sizes.values()) - min(sizes[k] for k in range(folds)) <= 1
    assert dealt == assign_folds(reversed(names), folds=folds, seed=0)
    assert patients == 3 or dealt != assign_folds(names, folds=folds, seed=1)


def test_one_fold_is_refused():
    with pytest.raises(ValueError, match="folds is 1; expected at least 2"):
        assign_folds(["a"], folds=1, seed=0)


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


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "x.txt"
    with pytest.raises(RuntimeError):
        fail_halfway(target)
    assert list(tmp_path.iterdir()) == []
    with replacing(target) as part:
        part.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    for path in (tmp_path / ".a.json.1.part", tmp_path / "imagesTr" / ".x.nii.gz.1.part", tmp_path / "mine.part"):
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
