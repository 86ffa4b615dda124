"""A run that trained small kernels first (`start_upkern`): its bundle holds the large ones, and no trace of the way."""

import pytest
import torch
import yaml
from release_support import ONE_STEP, InThisProcess, job, overlay, release_and_unpack, run_bundles, with_trial
from scripts import workflows
from scripts.verify import verify
from support import ball_dataset


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Dataset, zip and unpacked bundle of a tiny MedNeXt of kernel 5 from one of kernel 3."""
    folder = tmp_path_factory.mktemp("upkern")
    data = ball_dataset(folder / "balls", n=5, size=16)
    overlays = ["network_mednext_s", "fusion_none", "start_upkern", str(overlay(folder, "mednext_s", "none"))]
    workflows.train(str(data), str(folder / "k5"), overlays, **ONE_STEP)
    assert (folder / "k5" / "k3" / "model.pt").is_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.export.torchscript.ProcessPoolExecutor", InThisProcess)
        return data, *release_and_unpack(folder / "k5", folder, name="upkern_segmentation")


def test_holds_the_large_kernels_alone(released):
    _, _, bundle = released
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert weights["encoder.stages.0.0.conv1.weight"].shape[2:] == (5, 5, 5)
    assert not (bundle / "scripts" / "stages.py").exists()
    for file in (bundle / "configs").glob("*.yaml"):
        assert "train_first" not in file.read_text(), file
        assert "upkern" not in file.read_text(), file
    config = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())
    assert (config["kernel_size"], config["initial_weights"]) == (5, None)


def test_is_verified_and_runs_alone(released, tmp_path, monkeypatch):
    data, archive, bundle = released
    monkeypatch.setattr("scripts.verify.bundle.trial_problems", lambda *args, **kwargs: [])
    verify(str(archive))
    image, masks = str(data / "imagesTr" / "ball_00.nii.gz"), tmp_path / "masks"
    tried = job(bundle, "inference", "inference.yaml", dataset_dir=image, output_dir=str(masks))
    training = {"dataset_dir": str(data), "output_dir": str(tmp_path / "tuned"), "epochs": 1, "val_interval": 1}
    run_bundles(
        [with_trial(tried, tmp_path / "trial"), job(bundle, "fine_tuning", "train.yaml", **training)],
        tmp_path / "empty",
    )
    assert (masks / "ball_00_seg.nii.gz").is_file()
    assert (tmp_path / "tuned" / "model.pt").is_file()
