import csv
import json

import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scripts import workflows
from scripts.evaluation import CaseScores
from support import CONFIGS, write_nifti

AFFINE = np.diag([-1.5, 1.5, 2.0, 1.0])
LABEL = np.zeros((8, 8, 8), np.uint8)
LABEL[2:6, 2:6, 2:6] = 1


@pytest.fixture
def score(tmp_path):
    """Score a mask against a reference on `AFFINE`, through an evaluator of one case."""

    def run(mask, affine=AFFINE, reference_affine=AFFINE):
        reference = write_nifti(tmp_path / "labelsTr" / "c0.nii.gz", LABEL, reference_affine)
        case = {"case_id": "c0", "file": "imagesTr/c0.nii.gz", "reference": str(reference)}
        pred = MetaTensor(torch.as_tensor(mask[None]), affine=torch.as_tensor(affine))
        engine = Engine(lambda engine, batch: [{"pred": pred}])
        CaseScores(folder=str(tmp_path / "out"), labels=["background", "liver"], surface_tolerance=2.0).attach(engine)
        return engine.run([[case]]).metrics["mean_dice"]

    return run


def test_the_same_grid_is_scored(score, tmp_path):
    mask = LABEL.copy()
    mask[2] = 0  # 48 of 64 voxels: Dice 2 * 48 / (48 + 64)
    assert score(mask) == pytest.approx(6 / 7)
    with open(tmp_path / "out" / "per_case.csv") as file:
        (row,) = csv.DictReader(file)
    assert (row["case_id"], row["class"]) == ("c0", "liver")
    assert float(row["volume_ml_label"]) == pytest.approx(64 * 4.5 / 1000)
    (case,) = json.loads((tmp_path / "out" / "datalist.json").read_text())["validation"]
    assert case["image"] == "imagesTr/c0.nii.gz"


def test_rounding_of_the_affine_is_allowed(score):
    rounded = AFFINE.copy()
    rounded[:3] += 5e-4
    assert score(LABEL, reference_affine=rounded) == 1


@pytest.mark.parametrize("change", ["flipped", "shifted", "spacing"])
def test_reference_on_another_affine_is_refused(score, change):
    other = AFFINE.copy()
    if change == "flipped":
        other[0] = [1.5, 0, 0, -10.5]  # the same box of space, voxels in the other order
    elif change == "shifted":
        other[2, 3] = 2.0
    else:
        other[1, 1] = 1.6
    with pytest.raises(ValueError, match=r"labelsTr/c0\.nii\.gz lies on another grid than imagesTr/c0\.nii\.gz"):
        score(LABEL, reference_affine=other)


def test_reference_of_another_shape_is_refused(score):
    with pytest.raises(ValueError, match=r"another grid .*shape \(8, 8, 8\) .*expected \(8, 8, 6\)"):
        score(LABEL[..., :6])


def test_ids_that_a_run_is_too_old_for_are_refused(tmp_path, monkeypatch):
    """A run of before there were flips would be evaluated without them, and nobody would know."""
    names = [str(CONFIGS / f"{name}.yaml") for name in ("inference", "train", "fusion_none")]
    config = ConfigParser.load_config_files(names)
    for young in ("tta_axes", "surface_tolerance"):
        del config[young]
    del config["inferer"]["flip_axes"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "model.pt").touch()
    asked = []
    monkeypatch.setattr(workflows, "_run", lambda run_id, files, overrides, **_: asked.append(overrides))
    with pytest.raises(ValueError, match="trained before there was 'tta_axes', and would not use it"):
        workflows.evaluate(str(tmp_path), tta_axes=[0])
    assert asked == []
    workflows.evaluate(str(tmp_path), surface_tolerance=1.0, keep_largest=[1])  # evaluate.yaml asks for the first
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"inferer": {"flip_axes": "@tta_axes"}}))
    workflows.evaluate(str(tmp_path), tta_axes=[0])
    assert asked == [{"surface_tolerance": 1.0, "keep_largest": [1]}, {"tta_axes": [0]}]
