"""A bundle as it is released, in the app: the masks of the run, and a training that goes on from it."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from app_support import app, write_balls
from scripts import workflows
from scripts.release import release
from support import tiny_overlay

pytestmark = pytest.mark.e2e


def test_zip_is_served_and_trained(tmp_path):
    images = write_balls(tmp_path / "cohort", 6)
    table = images.parent / "clinical.csv"
    run = tmp_path / "balls"
    workflows.train(str(images.parent), str(run), str(tiny_overlay(tmp_path)), epochs=2, val_interval=1)
    workflows.evaluate(str(run))
    archive = release(str(run), output=str(tmp_path / "dist"))
    shutil.copytree(images.parent / "labelsTr", images / "labels" / "final")

    served = app(images, bundle=f"balls={archive}", clinical=table, output=tmp_path / "out")
    workflows.infer(str(images / "ball_03.nii.gz"), str(tmp_path), run=str(run), clinical=str(table))
    mask = nib.load(served.infer({"model": "balls", "image": "ball_03"})["file"])
    expected = nib.load(tmp_path / "ball_03_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))

    stats = served.train({"model": "balls", "max_epochs": 10, "learning_rate": 0.01})
    assert stats["verdict"]["compared_with"] == "0"
    assert stats["verdict"]["dice"] > stats["verdict"]["served_dice"]
    assert stats["served"] == "1"
