"""What `prepare <download>` refuses, and what its help says."""

import gzip
import inspect
import re
import sys

import import_support as trees
import nibabel as nib
import numpy as np
import pytest
from import_support import OPTIONS, check_case, digests, listed, save_pair
from scripts.__main__ import main
from scripts.prepare.commands import COMMANDS
from scripts.prepare.downloads import DOWNLOADS


@pytest.mark.parametrize("name", DOWNLOADS)
def test_another_folder_is_refused_before_anything_is_written(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match="empty holds no|holds 0 tables"):
        COMMANDS[name](str(tmp_path / "empty"), str(tmp_path / "out"), **OPTIONS)
    with pytest.raises(FileNotFoundError, match="missing is not a folder"):
        COMMANDS[name](str(tmp_path / "missing"), str(tmp_path / "out"), **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_downloads_are_never_written_over(tmp_path):
    source = tmp_path / "raw"
    trees.amos22(source)
    before = digests(source)
    with pytest.raises(ValueError, match="lies in the output folder .* choose another --output"):
        COMMANDS["amos22"](str(source), str(source / "amos22"), **OPTIONS)
    with pytest.raises(ValueError, match="holds files that prepare did not write"):
        COMMANDS["amos22"](str(source), str(source / "amos22" / "imagesTs"), **OPTIONS)
    assert digests(source) == before


def test_not_a_single_good_case_is_an_error(tmp_path):
    trees.kits19(tmp_path / "raw", numbers=[0])
    path = tmp_path / "raw/kits19/data/case_00000/segmentation.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    with pytest.raises(
        ValueError, match=r"none of the 1 cases .*segmentation.nii.gz marks no voxel of any class. All reasons"
    ):
        COMMANDS["kits19"](str(tmp_path / "raw"), str(tmp_path / "out"), **OPTIONS)


def test_image_with_nan_is_broken(tmp_path):
    trees.kits19(tmp_path / "raw", numbers=[0, 1])
    path = tmp_path / "raw/kits19/data/case_00000/imaging.nii.gz"
    image = nib.load(path)
    data = image.get_fdata(dtype=np.float32)
    data[3, 3, 3] = np.nan
    path.write_bytes(gzip.compress(nib.Nifti1Image(data, image.affine).to_bytes()))
    done = COMMANDS["kits19"](str(tmp_path / "raw"), str(tmp_path / "out"), **OPTIONS)
    assert re.search("case_00000/imaging.nii.gz: 1 voxels are NaN", done["broken"]["case_00000"])


@pytest.mark.parametrize("name", DOWNLOADS)
def test_help_teaches_layout_source_terms_and_classes(name):
    known, text = DOWNLOADS[name], inspect.getdoc(COMMANDS[name])
    for expected in (known.layout, known.where, known.terms, known.note, *known.classes):
        assert expected in text
    assert set(inspect.signature(COMMANDS[name]).parameters) >= {"source", "output", "part", "groups", "folds", "seed"}


def test_command_line(tmp_path, monkeypatch, capsys):
    trees.amos22(tmp_path / "amos")
    save_pair(tmp_path / "i" / "a.nii.gz", tmp_path / "l" / "a.nii.gz", [1, 2])
    common = ["--workers", "1", "--progress", "False"]
    for words in (
        ["amos22", "--source", tmp_path / "amos", "--output", tmp_path / "out", "--groups", "CT,MR"],
        ["folders", "--images", tmp_path / "i", "--labels", tmp_path / "l", "--output", tmp_path / "two"]
        + ["--names", "organ,lesion"],
    ):
        monkeypatch.setattr(sys, "argv", ["nny", "prepare", *map(str, words), *common])
        main()
    assert len(listed(tmp_path / "out")) == 3
    check_case(tmp_path / "two", "a", {1: 1, 2: 2})
    assert "prepare-report.html" in capsys.readouterr().out
