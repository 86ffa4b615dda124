"""Trees like those of BIDS: which images belong to which label map, and what is said where none or several do."""

import re

import pytest
from import_support import OPTIONS, check_case, prepared, save, volumes
from scripts.prepare.bids import prepare_bids

TWO = {1: 1, 2: 2}


@pytest.fixture
def bids(tmp_path):
    root = tmp_path / "study"
    for subject in ("01", "02", "03"):
        for session in ("1", "2"):
            name = f"sub-{subject}_ses-{session}"
            image, label = volumes([1, 2])
            folder = root / f"sub-{subject}" / f"ses-{session}" / "anat"
            save(folder / f"{name}_T1w.nii.gz", image, "LPS")
            save(folder / f"{name}_FLAIR.nii.gz", image + 1000, "LPS")
            if (subject, session) != ("03", "2"):
                masks = root / "derivatives" / "manual" / f"sub-{subject}" / f"ses-{session}" / "anat"
                save(masks / f"{name}_space-T1w_desc-manual_dseg.nii.gz", label, "LPS")
    rows = ["participant_id\tage\tsite", "sub-01\t71\tA", "sub-02\tn/a\tB", "sub-03\t55\tA"]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    (root / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n1\tgrey matter\n2\tlesion\n")
    return root


def test_tree_like_bids(bids, tmp_path):
    done, content, cases = prepared(prepare_bids, tmp_path / "out", bids, modality="T1w,FLAIR", group="site", folds=3)
    assert (done["kept"], done["broken"]) == (5, {})
    assert sorted(cases)[:2] == ["sub-01_ses-1", "sub-01_ses-2"]
    assert list(content["labels"].values()) == ["background", "grey matter", "lesion"]
    assert list(content["modality"].values()) == ["T1w", "FLAIR"]
    check_case(tmp_path / "out", "sub-02_ses-2", TWO, 1000)
    assert [cases[f"sub-0{n}_ses-1"]["group"] for n in (1, 2, 3)] == ["A", "B", "A"]
    assert cases["sub-01_ses-1"]["fold"] == cases["sub-01_ses-2"]["fold"]
    assert len({case["fold"] for case in cases.values()}) == 3
    assert (tmp_path / "out" / "clinical.csv").read_text().splitlines()[1:3] == ["sub-01,71,A", "sub-02,n/a,B"]
    assert "2 images have no label map" in (tmp_path / "out" / "prepare-report.html").read_text()


def test_broken_bids_case(bids, tmp_path):
    anat = bids / "sub-02" / "ses-1" / "anat"
    for run in ("1", "2"):
        save(anat / f"sub-02_ses-1_run-{run}_T1w.nii.gz", volumes([1])[0], "LPS")
    (anat / "sub-02_ses-1_T1w.nii.gz").unlink()
    (bids / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T1w.nii.gz").unlink()
    done, _, cases = prepared(prepare_bids, tmp_path / "out", bids)
    assert sorted(cases) == ["sub-01_ses-1", "sub-02_ses-2", "sub-03_ses-1"]
    assert re.search(r"sub-02_ses-1_.*dseg\.nii\.gz fits 2 images .*_run-1_T1w", done["broken"]["sub-02_ses-1"])
    assert re.search(r"fits 0 images \*_T1w\.nii\.gz; expected one", done["broken"]["sub-01_ses-2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "bold"}, r"holds no sub-…_bold\.nii\.gz outside of derivatives"),
        ({"label": "mask"}, r"holds no sub-…_mask\.nii\.gz; see --modality and --label"),
        ({"group": "scanner"}, "participants.tsv has no column 'scanner' for --group"),
    ],
)
def test_mistakes_in_calling_bids(bids, tmp_path, options, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        prepare_bids(str(bids), str(tmp_path / "out"), **(OPTIONS | options))
    assert not (tmp_path / "out").exists()
