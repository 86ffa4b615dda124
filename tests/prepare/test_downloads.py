"""Each download that `prepare` knows, as a small tree laid out like the real one; and each with one case broken."""

import json
import re

import import_support as trees
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from import_support import OPTIONS, check_case, digests, listed
from scripts.datalists import check_cases, read_datalist, split
from scripts.prepare.commands import COMMANDS
from scripts.prepare.downloads import DOWNLOADS

SAME = {n: {k: k for k in range(1, n + 1)} for n in (2, 3, 13, 15)}
SYNAPSE = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}
# name: (tree, value in the files -> class, cases, groups, intensity from channel to channel)
EXPECTED = {
    "btcv": (trees.btcv, SAME[13], ["case0001", "case0005", "case0008", "case0021"], [""], 0),
    "synapse": (trees.btcv, SYNAPSE, ["case0001", "case0005", "case0008", "case0021"], [""], 0),
    "acdc": (
        trees.acdc,
        SAME[3],
        [f"patient{n:03d}_frame{f:02d}" for n in (1, 2, 3) for f in (1, 10 + n)],
        ["DCM", "HCM", "NOR"],
        0,
    ),
    "mnms": (
        trees.mnms,
        {1: 3, 2: 2, 3: 1},
        [f"{code}_frame{f:02d}" for n, code in enumerate(trees.MNMS) for f in (0, 2 + n % 2)],
        ["A", "B", "C", "D"],
        0,
    ),
    "amos22": (trees.amos22, SAME[15], ["amos_0001", "amos_0004", "amos_0507"], ["CT", "MR"], 0),
    "kits19": (trees.kits19, SAME[2], [f"case_{n:05d}" for n in range(4)], [""], 0),
    "brats21": (trees.brats21, {2: 1, 1: 2, 4: 3}, [f"BraTS2021_{n:05d}" for n in (0, 2, 3)], [""], 1000),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Each download prepared once, on first use: (source, output, what the command returned)."""
    made = {}

    def get(name):
        if name not in made:
            source, output = (tmp_path_factory.mktemp(name) / part for part in ("raw", "out"))
            EXPECTED[name][0](source)
            made[name] = source, output, COMMANDS[name](str(source), str(output), **OPTIONS)
        return made[name]

    return get


def test_every_download_of_the_table_is_tested():
    assert set(EXPECTED) == set(DOWNLOADS)


@pytest.mark.parametrize("name", EXPECTED)
def test_orientation_labels_folds_and_groups(prepared, name):
    _, values, cases, groups, offset = EXPECTED[name]
    _, output, done = prepared(name)
    assert (done["kept"], done["broken"]) == (len(cases), {})
    entries = listed(output)
    assert sorted(entries) == sorted(cases)
    for case in cases:
        check_case(output, case, values, offset)
    assert sorted({entry["group"] for entry in entries.values()}) == groups
    content = json.loads((output / "dataset.json").read_text())
    assert list(content["labels"].values()) == list(DOWNLOADS[name].classes)
    assert list(content["modality"].values()) == list(DOWNLOADS[name].channels)
    assert content["licence"] == DOWNLOADS[name].terms
    folds = {}
    for entry in entries.values():
        folds.setdefault(entry["patient_id"], set()).add(entry["fold"])
    assert all(len(of) == 1 for of in folds.values())
    assert len({next(iter(of)) for of in folds.values()}) > 1


@pytest.mark.parametrize("name", EXPECTED)
def test_training_takes_what_was_written(prepared, name):
    output = prepared(name)[1]
    cases = read_datalist(output)
    check_cases(cases, DOWNLOADS[name].classes)
    parts = split(cases, 0)
    assert parts["training"]
    assert parts["validation"]


# one broken case each: what is done to it, its name, and what the report says


def slice_lost(root):
    path = root / "Abdomen/RawData/Training/label/label0008.nii.gz"
    label = nib.load(path)
    nib.save(label.slicer[:, :, :-1], path)


def unknown_value(root):
    path = root / "Abdomen/RawData/Training/label/label0008.nii.gz"
    label = nib.load(path)
    data = np.asarray(label.dataobj).copy()
    data[0, 0, 0] = 77
    nib.save(nib.Nifti1Image(data, label.affine), path)


def label_not_downloaded(root):
    next(root.rglob("patient002_frame12_gt.nii.gz")).unlink()


def frame_beyond_the_scan(root):
    table = next(root.rglob(trees.MNMS_TABLE))
    rows = pd.read_csv(table, dtype=str)
    rows.loc[rows["External code"] == "B3K1M2", "ES"] = "9"
    rows.to_csv(table, index=False)


def cut_off(root):
    path = root / "amos22/imagesTr/amos_0004.nii.gz"
    path.write_bytes(path.read_bytes()[:3000])


def header_flipped(root):
    path = root / "kits19/data/case_00002/segmentation.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), label.affine @ np.diag([1, 1, -1, 1])), path)


def channel_lost(root):
    next(root.rglob("BraTS2021_00002_t1ce.nii.gz")).unlink()


BROKEN = {
    "btcv": (slice_lost, "case0008", r"label0008\.nii\.gz has the shape \(20, 20, 15\), but .*img0008\.nii\.gz has"),
    "synapse": (unknown_value, "case0008", r"label0008\.nii\.gz holds the value 77; expected 0, 1, 2"),
    "acdc": (label_not_downloaded, "patient002_frame12", r"patient002_frame12_gt\.nii\.gz does not exist"),
    "mnms": (frame_beyond_the_scan, "B3K1M2_frame09", r"B3K1M2_sa\.nii\.gz has the shape .* expected .* a frame 9"),
    "amos22": (cut_off, "amos_0004", r"imagesTr/amos_0004\.nii\.gz cannot be read"),
    "kits19": (header_flipped, "case_00002", r"case_00002/segmentation\.nii\.gz lies up to .* mm away from .*imaging"),
    "brats21": (channel_lost, "BraTS2021_00002", r"BraTS2021_00002_t1ce\.nii\.gz does not exist"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_broken_case_is_reported_the_rest_imported_and_mending_resumes(prepared, name, tmp_path):
    damage, case, reason = BROKEN[name]
    tree, values, cases, _, offset = EXPECTED[name]
    source, output = tmp_path / "raw", tmp_path / "out"
    tree(source)
    damage(source)
    done = COMMANDS[name](str(source), str(output), **OPTIONS)
    assert list(done["broken"]) == [case]
    assert re.search(reason, done["broken"][case]), done["broken"][case]
    assert done["kept"] == len(cases) - 1
    rest = [other for other in cases if other in listed(output)]
    assert len(rest) == len(cases) - 1
    for other in rest:
        check_case(output, other, values, offset)
    assert {p.name for p in output.rglob(f"{case}*")} == {f"{case}.json"}  # the reason, and nothing half-written
    assert case in (output / "prepare-report.html").read_text()
    for path in source.rglob("*.*"):
        if path.is_file():
            path.unlink()
    tree(source)  # downloaded again, all of it: what is unchanged in content is made again, as its time differs
    mended = COMMANDS[name](str(source), str(output), **OPTIONS)
    assert (mended["kept"], mended["broken"]) == (len(cases), {})
    fresh = prepared(name)[1]
    assert {k: v for k, v in digests(output).items() if k.endswith(".nii.gz")} == {
        k: v for k, v in digests(fresh).items() if k.endswith(".nii.gz")
    }
    assert json.loads((output / "dataset.json").read_text()) == json.loads((fresh / "dataset.json").read_text())


def test_nothing_is_made_twice_and_what_is_gone_is_made_again(prepared):
    source, output, _ = prepared("acdc")
    before = digests(output)
    assert COMMANDS["acdc"](str(source), str(output), **OPTIONS)["resumed"] == 6
    assert digests(output) == before
    (output / "labelsTr" / "patient001_frame01.nii.gz").unlink()
    assert COMMANDS["acdc"](str(source), str(output), **OPTIONS)["resumed"] == 5
    assert digests(output) == before


# what belongs to one download


def test_split_of_transunet(prepared):
    folds = {case: entry["fold"] for case, entry in listed(prepared("synapse")[1]).items()}
    assert folds == {"case0001": 0, "case0005": 1, "case0008": 0, "case0021": 1}
    from scripts.prepare.layouts import SYNAPSE_TEST, SYNAPSE_TRAIN

    assert (len(SYNAPSE_TEST), len(SYNAPSE_TRAIN)) == (12, 18)
    assert sorted(SYNAPSE_TEST + SYNAPSE_TRAIN) == [*range(1, 11), *range(21, 41)]


def test_both_frames_of_a_patient_are_in_one_fold(prepared):
    for name in ("acdc", "mnms"):
        entries = listed(prepared(name)[1])
        for case, entry in entries.items():
            other = [e for e in entries.values() if e["patient_id"] == entry["patient_id"]]
            assert len(other) == 2
            assert case.startswith(entry["patient_id"])
            assert len({e["fold"] for e in other}) == 1


def test_frames_of_a_cine_scan_are_those_of_the_table(prepared):
    output = prepared("mnms")[1]
    for n, code in enumerate(trees.MNMS):
        for frame in (0, 2 + n % 2):
            image = nib.as_closest_canonical(nib.load(output / "imagesTr" / f"{code}_frame{frame:02d}.nii.gz"))
            np.testing.assert_array_equal(np.asarray(image.dataobj), trees.volumes([1, 2, 3], 10 * n + frame)[0])


def test_groups_and_parts_can_be_chosen_and_the_rest_is_taken_out(prepared, tmp_path):
    source = prepared("amos22")[0]
    run = COMMANDS["amos22"]
    assert run(str(source), str(tmp_path / "out"), **OPTIONS)["kept"] == 3
    assert run(str(source), str(tmp_path / "out"), groups="CT", **OPTIONS)["resumed"] == 2
    assert sorted(listed(tmp_path / "out")) == ["amos_0001", "amos_0004"]
    assert not list((tmp_path / "out").rglob("amos_0507*"))
    run(str(source), str(tmp_path / "validation"), part="validation", **OPTIONS)
    assert list(listed(tmp_path / "validation")) == ["amos_0008"]
    with pytest.raises(ValueError, match=r"no case of group 'PET'; there are \['CT', 'MR'\]"):
        run(str(source), str(tmp_path / "other"), groups="PET", **OPTIONS)
    with pytest.raises(ValueError, match="--part 'test'; AMOS22 has training, validation"):
        run(str(source), str(tmp_path / "other"), part="test", **OPTIONS)
    assert not (tmp_path / "other").exists()


def test_overlapping_regions_are_unions_of_nested_classes(prepared):
    output = prepared("brats21")[1]
    regions = json.loads((output / "dataset.json").read_text())["regions"]
    assert regions == {"whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing tumour": [3]}
    raw = nib.as_closest_canonical(nib.load(next(prepared("brats21")[0].rglob("BraTS2021_00000_seg.nii.gz"))))
    ours = nib.as_closest_canonical(nib.load(output / "labelsTr" / "BraTS2021_00000.nii.gz"))
    raw, ours = np.asarray(raw.dataobj), np.asarray(ours.dataobj)
    for name, values in {"whole tumour": [1, 2, 4], "tumour core": [1, 4], "enhancing tumour": [4]}.items():
        np.testing.assert_array_equal(np.isin(ours, regions[name]), np.isin(raw, values))


def test_no_case_of_the_cine_table_is_dropped_silently(tmp_path):
    trees.mnms(tmp_path / "raw")
    table = next((tmp_path / "raw").rglob(trees.MNMS_TABLE))
    table.write_text("\n".join(line for line in table.read_text().splitlines() if "C7Q5P8" not in line) + "\n")
    done = COMMANDS["mnms"](str(tmp_path / "raw"), str(tmp_path / "out"), **OPTIONS)
    assert list(done["broken"]) == ["C7Q5P8"]
    assert f"{trees.MNMS_TABLE} has no row for C7Q5P8" in done["broken"]["C7Q5P8"]
    table.unlink()
    with pytest.raises(ValueError, match="holds 0 tables with a column 'External code'"):
        COMMANDS["mnms"](str(tmp_path / "raw"), str(tmp_path / "out"), **OPTIONS)
