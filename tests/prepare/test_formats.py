"""Datasets in the formats that people have: MSD, nnU-Net's raw data, two folders."""

import json
import re

import import_support as trees
import itk
import nibabel as nib
import numpy as np
import pytest
from import_support import OPTIONS, check_case, prepared, save, save_4d, save_pair, volumes
from scripts.prepare.folders import bare_name, prepare_folders
from scripts.prepare.formats import prepare_msd, prepare_nnunet

TWO = {1: 1, 2: 2}


def describe(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content))


# Medical Segmentation Decathlon


@pytest.fixture
def msd(tmp_path):
    root = tmp_path / "Task99_Test"
    for name in ("s1_a", "s1_b", "s2_a", "s3_a"):
        save_pair(root / "imagesTr" / f"{name}.nii.gz", root / "labelsTr" / f"{name}.nii.gz", [1, 3], "LAS")
    training = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("s1_a", "s1_b", "s2_a", "s3_a")
    ]
    describe(
        root,
        name="Test",
        modality={"0": "CT"},
        labels={"0": "background", "1": "organ", "3": "lesion"},
        training=training,
        licence="CC-BY-SA 4.0",
        test=["./imagesTs/x.nii.gz"],
    )
    return root


def test_decathlon(msd, tmp_path):
    done, content, cases = prepared(prepare_msd, tmp_path / "out", msd, patient="^(s\\d)_", folds=3)
    assert (done["kept"], done["broken"]) == (4, {})
    assert content["labels"] == {"0": "background", "1": "organ", "2": "lesion"}  # without the gap
    assert (content["modality"], content["licence"]) == ({"0": "CT"}, "CC-BY-SA 4.0")
    for case in cases:
        check_case(tmp_path / "out", case, {1: 1, 3: 2})
    assert cases["s1_a"]["patient_id"] == cases["s1_b"]["patient_id"] == "s1"
    assert cases["s1_a"]["fold"] == cases["s1_b"]["fold"]
    assert {case["fold"] for case in cases.values()} == {0, 1, 2}


def test_channels_of_a_decathlon_file_and_a_prepared_dataset_again(tmp_path):
    root = tmp_path / "raw"
    image, label = volumes([1, 2])
    save_4d(root / "imagesTr" / "b.nii.gz", np.stack([image, image + 1000], -1), "LPS")
    save(root / "labelsTr" / "b.nii.gz", label, "LPS")
    entry = {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz", "fold": 3, "group": "site 7"}
    labels = {"0": "background", "1": "oedema", "2": "core"}
    describe(root, modality={"0": "FLAIR", "1": "T1w"}, labels=labels, training=[entry | {"patient_id": "P"}])
    prepared(prepare_msd, tmp_path / "out", root)
    check_case(tmp_path / "out", "b", TWO, 1000)
    _, content, cases = prepared(prepare_msd, tmp_path / "again", tmp_path / "out")  # what it wrote, it reads
    assert content["modality"] == {"0": "FLAIR", "1": "T1w"}
    assert [cases["b"][key] for key in ("fold", "group", "patient_id")] == [3, "site 7", "P"]


def test_broken_decathlon_case(msd, tmp_path):
    content = json.loads((msd / "dataset.json").read_text())
    content["training"][1].pop("label")
    (msd / "labelsTr" / "s2_a.nii.gz").write_bytes(b"not NIfTI")
    describe(msd, **content)
    done, _, cases = prepared(prepare_msd, tmp_path / "out", msd)
    assert sorted(cases) == ["s1_a", "s3_a"]
    assert done["broken"]["s1_b"] == "dataset.json names no label for ./imagesTr/s1_b.nii.gz"
    assert re.search(r"labelsTr/s2_a\.nii\.gz cannot be read", done["broken"]["s2_a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {"0": "background", "1": "a"}}, "needs a list `training`"),
        ({"labels": {"1": "a", "2": "b"}, "training": []}, r"labels have the values \[1, 2\]; expected 0 and"),
        ({"training": []}, "labels are None; expected value -> name"),
        ({"labels": {"0": "background", "1": "a"}, "training": []}, "no case is left"),
    ],
)
def test_description_that_cannot_be_used(content, message, tmp_path):
    describe(tmp_path, **content)
    with pytest.raises(ValueError, match=message):
        prepare_msd(str(tmp_path), str(tmp_path / "out"), **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_description_that_is_missing_or_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset.json does not exist"):
        prepare_nnunet(str(tmp_path), str(tmp_path / "out"), **OPTIONS)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        prepare_nnunet(str(tmp_path), str(tmp_path / "out"), **OPTIONS)


# nnU-Net


def nnunet(root, cases=("liver_01", "liver_02"), channels=2):
    for name in cases:
        image, label = volumes([1, 2, 4])
        for i in range(channels):
            save(root / "imagesTr" / f"{name}_{i:04d}.nii.gz", image + 1000 * i, "LPS")
        save(root / "labelsTr" / f"{name}.nii.gz", label, "LPS")
    return root


def test_nnunet_version_2(tmp_path):
    root = nnunet(tmp_path / "Dataset001_Liver")
    names = {"0": "T1", "1": "T2"}
    labels = {"background": 0, "liver": 1, "tumour": 2, "vein": 4}
    describe(root, channel_names=names, labels=labels, numTraining=2, file_ending=".nii.gz")
    done, content, cases = prepared(prepare_nnunet, tmp_path / "out", root)
    assert done["kept"] == len(cases) == 2
    assert (content["name"], content["modality"]) == ("Dataset001_Liver", names)
    assert list(content["labels"].values()) == ["background", "liver", "tumour", "vein"]
    check_case(tmp_path / "out", "liver_01", {1: 1, 2: 2, 4: 3}, 1000)


def test_nnunet_version_1(tmp_path):
    root = nnunet(tmp_path / "Task001_Liver")
    labels = {"0": "background", "1": "liver", "2": "tumour", "4": "vein"}
    training = [{"image": "./imagesTr/liver_01.nii.gz", "label": "./labelsTr/liver_01.nii.gz"}]  # no such image file
    describe(root, name="Liver", modality={"0": "T1", "1": "T2"}, labels=labels, training=training)
    done, content, _ = prepared(prepare_nnunet, tmp_path / "out", root)
    assert (done["kept"], content["name"]) == (2, "Liver")
    check_case(tmp_path / "out", "liver_02", {1: 1, 2: 2, 4: 3}, 1000)


def test_nnunet_regions(tmp_path):
    root = nnunet(tmp_path / "raw", channels=1)
    labels = {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": [4]}
    describe(root, channel_names={"0": "FLAIR"}, labels=labels, regions_class_order=[1, 2, 4])
    _, content, _ = prepared(prepare_nnunet, tmp_path / "out", root)
    assert list(content["labels"].values()) == ["background", "whole only", "core only", "enhancing"]
    assert content["regions"] == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


def test_nnunet_list_of_files(tmp_path):
    root = nnunet(tmp_path / "raw", channels=1)
    (root / "imagesTr").rename(root / "elsewhere")
    files = {"P1": {"images": ["elsewhere/liver_01_0000.nii.gz"], "label": "labelsTr/liver_01.nii.gz"}}
    labels = {"background": 0, "a": 1, "b": 2, "c": 4}
    describe(root, channel_names={"0": "CT"}, labels=labels, dataset=files)
    _, _, cases = prepared(prepare_nnunet, tmp_path / "out", root)
    assert list(cases) == ["P1"]


def test_broken_nnunet_case_and_ignore_label(tmp_path):
    root = nnunet(tmp_path / "raw")
    save(root / "imagesTr" / "liver_03_0000.nii.gz", volumes([1])[0])  # neither second channel nor label
    labels = {"background": 0, "a": 1, "b": 2, "c": 4}
    describe(root, channel_names={"0": "T1", "1": "T2"}, labels=labels)
    done, _, cases = prepared(prepare_nnunet, tmp_path / "out", root)
    assert sorted(cases) == ["liver_01", "liver_02"]
    assert re.search(r"imagesTr/liver_03_0001\.nii\.gz does not exist", done["broken"]["liver_03"])
    describe(root, channel_names={"0": "T1", "1": "T2"}, labels=labels | {"ignore": 5})
    with pytest.raises(ValueError, match="has an ignore label"):
        prepare_nnunet(str(root), str(tmp_path / "other"), **OPTIONS)


# two folders


def test_two_folders_without_names_of_classes(tmp_path):
    for n in range(3):
        image, label = volumes([1], n)
        save(tmp_path / "scans" / f"img_{n:02d}.nii.gz", image, "LPS")
        save(tmp_path / "masks" / f"{n:02d}_seg.nii.gz", label * 255, "LPS")
    done, content, cases = prepared(prepare_folders, tmp_path / "out", tmp_path / "scans", tmp_path / "masks")
    assert (done["kept"], sorted(cases)) == (3, ["img_00", "img_01", "img_02"])
    assert content["labels"] == {"0": "background", "1": "label 255"}
    check_case(tmp_path / "out", "img_01", {1: 1})


def test_other_formats_than_nifti_keep_their_place(tmp_path):
    image, label = volumes([1, 2])
    for name, array in (("images/case7.nrrd", image), ("labels/case7.mha", label)):
        nifti = trees.stored(array, "LPS")
        path = tmp_path / name
        path.parent.mkdir()
        volume = itk.image_from_array(np.ascontiguousarray(np.asarray(nifti.dataobj).T))  # itk: slices first
        volume.SetSpacing([float(v) for v in trees.SPACING])
        volume.SetOrigin([float(v) for v in nifti.affine[:3, 3] * (-1, -1, 1)])  # to LPS
        itk.imwrite(volume, str(path))
    folders = tmp_path / "images", tmp_path / "labels"
    _, content, _ = prepared(prepare_folders, tmp_path / "out", *folders, names="organ,lesion", modality="CT")
    assert list(content["labels"].values()) == ["background", "organ", "lesion"]
    check_case(tmp_path / "out", "case7", TWO)


def test_broken_pairs_of_folders(tmp_path):
    for n in (1, 2):
        save_pair(tmp_path / "i" / f"a{n}.nii.gz", tmp_path / "l" / f"a{n}.nii.gz", [1])
    save(tmp_path / "i" / "a3.nii.gz", volumes([1])[0])
    save(tmp_path / "l" / "a4.nii.gz", volumes([1])[1])
    done, _, cases = prepared(prepare_folders, tmp_path / "out", tmp_path / "i", tmp_path / "l")
    assert sorted(cases) == ["a1", "a2"]
    assert re.search(r"i/a3\.nii\.gz has no label of that name", done["broken"]["a3"])
    assert re.search(r"l/a4\.nii\.gz has no image of that name", done["broken"]["a4"])
    save(tmp_path / "l" / "a1_mask.nii.gz", volumes([1])[1])
    with pytest.raises(ValueError, match="are both named a1; rename one"):
        prepare_folders(str(tmp_path / "i"), str(tmp_path / "l"), str(tmp_path / "other"), **OPTIONS)


def test_images_given_as_labels(tmp_path):
    rng = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(rng.normal(size=(9, 9, 9)).astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="hold 730 values, .* Are these images instead of labels"):
        prepare_folders(str(tmp_path), str(tmp_path), str(tmp_path / "out"), **OPTIONS)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("case7.nii.gz", "case7"),
        ("img_case7_0000.nii.gz", "case7"),
        ("case7_seg.nii", "case7"),
        ("label0007.nii.gz", "0007"),
        ("segundo_1_mask.nrrd", "segundo_1"),
        ("CT-12-label.mha", "12"),
    ],
)
def test_names_are_compared_without_words_for_image_and_label(file, name, tmp_path):
    assert bare_name(tmp_path / file) == name
