"""MONAI Label's own task for bundles serves a release as it is."""

import re
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts import workflows

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture(scope="module")
def tasks():
    """MONAI Label's tasks; they import torchvision, of which a build for another torch lacks its operators."""
    while True:
        try:
            import torchvision  # noqa: F401

            break
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            OPERATORS.define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    from monailabel.tasks.infer.bundle import BundleInferTask
    from monailabel.tasks.train.bundle import BundleTrainTask

    return BundleInferTask, BundleTrainTask


@pytest.fixture
def same_scripts():
    """Other tests go on with the modules that they imported; the task unloads them and takes the bundle's."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "scripts"}
    path = list(sys.path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.modules.update(before)
    sys.path[:] = path


def test_stock_task_segments_like_infer(bundle, run, data, tmp_path, tasks, same_scripts):
    image = data / "imagesTr" / "ball_00.nii.gz"
    workflows.infer(str(image), str(tmp_path), run=str(run))
    task = tasks[0](str(bundle), {})
    assert task.is_valid()
    assert task.labels == {"ball": 1}
    assert task.version == "1.2.0"
    file, result = task({"image": str(image), "device": "cpu", "result_extension": ".nii.gz"})
    mask, expected = nib.load(file), nib.load(tmp_path / "ball_00_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
    assert result["label_names"] == {"ball": 1}


def test_stock_task_takes_the_training_configuration(bundle, tasks, same_scripts):
    task = tasks[1](str(bundle), {})
    assert task.is_valid()
    assert isinstance(task.bundle_config.get("train#handlers"), list)
