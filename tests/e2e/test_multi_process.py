"""multi_gpu_train with two processes on a CPU: from a released bundle and from the overlays."""

import re

import pytest
import torch
from release_support import outside, release_and_unpack
from scripts import workflows
from scripts.handlers import read_log
from support import CONFIGS, ball_dataset, tiny_overlay

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ball_dataset(tmp_path_factory.mktemp("balls"))


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    workflows.train(str(data), str(folder / "run"), str(tiny_overlay(folder)), epochs=1, val_interval=1)
    return release_and_unpack(folder / "run", folder, name="ball_segmentation")[1]


def torchrun(folder, run_id, configs, processes=2, **overrides):
    arguments = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments += ["-m", "monai.bundle", "run", run_id, "--config_file", configs]
    for name, value in overrides.items():
        arguments += [f"--{name}", str(value)]
    return outside(arguments, folder, timeout=800)


def test_two_processes_learn_and_one_writes(bundle, data, tmp_path):
    run = tmp_path / "run"
    output = torchrun(
        tmp_path / "empty", "training", str(bundle / "configs" / "multi_gpu_train.yaml"),
        dataset_dir=data, output_dir=run, epochs=6, val_interval=3, learning_rate=0.02,
    )  # fmt: skip
    rows = read_log(run / "log.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]  # one process writes, and each epoch once
    assert float(rows[-1]["train_loss"]) < 0.9 * float(rows[0]["train_loss"])
    assert len(list((run / "tensorboard").glob("events*"))) == 2  # those of training and of validation
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert not any(key.startswith("module.") for key in state["objects"]["network"])  # not the wrapper's names
    assert len(re.findall(r"SupervisedTrainer: Epoch\[6\] Complete", output)) == 2  # both took part to the end


def test_two_processes_fine_tune(bundle, data, tmp_path):
    run, config = tmp_path / "run", str(bundle / "configs" / "multi_gpu_train.yaml")
    common = {"dataset_dir": data, "output_dir": run, "epochs": 1, "val_interval": 1, "learning_rate": 1e-9}
    torchrun(tmp_path / "empty", "fine_tuning", config, **common)
    tuned, own = (torch.load(file, weights_only=True) for file in (run / "model.pt", bundle / "models" / "model.pt"))
    assert all(torch.allclose(tuned[key], own[key], atol=1e-5) for key in own)
    assert (run / "clinical.json").read_bytes() == (bundle / "models" / "clinical.json").read_bytes()


def test_overlays_of_the_repository_run_with_two_processes(data, tmp_path):
    names = ["inference.yaml", "train.yaml", "multi_gpu_train.yaml"]
    configs = [*(str(CONFIGS / name) for name in names), str(tiny_overlay(tmp_path))]
    run = tmp_path / "run"
    torchrun(tmp_path / "empty", "training", repr(configs), dataset_dir=data, output_dir=run, epochs=1, val_interval=1)
    assert (run / "model.pt").is_file()
