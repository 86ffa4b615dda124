"""Two processes on a CPU: training from a released bundle and from overlays, with the results of one process."""

import json
import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from release_support import outside, release_and_unpack
from scripts import workflows
from scripts.compare import compare
from scripts.handlers import read_log
from support import CONFIGS, ROOT, ball_dataset, tiny_overlay

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


# Without chance and with a loss that is a mean over cases, two processes with half the batch do what one does. SGD, as
# Adam turns the rounding of gradients that are truly zero (a bias before a normalisation) into whole steps.
EXACT = """
crops_per_case: 1
patch_size: [16, 16, 16]
flip_axes: []
train::loss::batch: false
train::cropping::transforms::1::prob: 0.0
train::cropping::transforms::2::prob: 0.0
train::augmentation::transforms: []
train::dataloader::shuffle: false
train::optimizer::_target_: torch.optim.SGD
learning_rate: 1.0
"""
FOLDS = {0: 3, 1: 5, 2: 3}  # cases: none can be dealt evenly to two processes

# What several processes do one after the other, to start them once: validation metrics as in training, evaluate, infer.
WORK = """
import json, sys
import ignite.distributed as idist
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from scripts import workflows

data, run, out, *configs = sys.argv[1:]
found = {}
for fold in (0, 1):
    parser = ConfigParser()
    parser.read_config(configs)
    parser.update({"dataset_dir": data, "output_dir": out, "fold": fold})
    set_determinism(0)
    evaluator = parser.get_parsed_content("validate::evaluator")
    evaluator.run()
    details = evaluator.state.metric_details["val_dice"].flatten().tolist()
    found[fold] = {"mean": evaluator.state.metrics["val_dice"], "cases": sorted(details)}
if idist.get_rank() == 0:
    print("SCORES", json.dumps(found))
workflows.evaluate(run, evaluation_dir=out + "/evaluation")
workflows.infer(data + "/imagesTr", out + "/masks", run=run, tta_axes=[0])
"""


def several(folder, *arguments):
    """Start two processes with torchrun; what they print."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        *map(str, arguments),
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'bundle'}:{ROOT}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-9000:]
    return done.stdout


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Eleven balls in folds of `FOLDS` cases, and an overlay without chance."""
    root = tmp_path_factory.mktemp("uneven")
    data = ball_dataset(root / "data", sum(FOLDS.values()), size=16)
    content = json.loads((data / "dataset.json").read_text())
    folds = [fold for fold, count in FOLDS.items() for _ in range(count)]
    for case, fold in zip(content["training"], folds, strict=True):
        case["fold"] = fold
    (data / "dataset.json").write_text(json.dumps(content))
    (root / "exact.yaml").write_text(EXACT)
    return root


@pytest.fixture(scope="module")
def overlays(uneven):
    return f"{tiny_overlay(uneven)},fusion_none,{uneven / 'exact.yaml'}"


@pytest.fixture(scope="module")
def alone(uneven, overlays):
    """A run of one process, evaluated."""
    run, data = uneven / "alone", str(uneven / "data")
    workflows.train(data, str(run), overlays, epochs=1, val_interval=1, batch_size=4)
    workflows.evaluate(str(run))
    workflows.infer(f"{data}/imagesTr", str(run / "masks"), run=str(run), tta_axes=[0])
    return run


def test_two_processes_train_as_one(uneven, overlays, alone, tmp_path):
    """`nny train` as it is, started by torchrun: after two steps of four cases the weights agree within 1e-5."""
    arguments = ["--no-python", ROOT / "nny", "train", uneven / "data", tmp_path / "run", overlays, "--epochs", 1]
    arguments += ["--val_interval", 1, "--batch_size", 2, "--train::sampler::shuffle", False]
    several(tmp_path, *arguments)
    one, two = (
        torch.load(run / "checkpoints" / "last.pt", weights_only=True)["objects"] for run in (alone, tmp_path / "run")
    )
    averaged = {key.removeprefix("module."): value for key, value in one["ema"].items()}
    moved = max(float((one["network"][key] - averaged[key]).abs().max()) for key in one["network"])
    assert moved > 1e-3  # the steps are far larger than the tolerance
    for part in ("network", "ema"):
        for key in one[part]:
            torch.testing.assert_close(one[part][key], two[part][key], atol=1e-5, rtol=0)
    served = [(run / "inference.yaml").read_text() for run in (alone, tmp_path / "run")]
    assert served[0] == served[1]  # nothing of the processes is left in what is deployed
    rows = [read_log(run / "log.csv")[0] for run in (alone, tmp_path / "run")]
    assert float(rows[0]["val_dice"]) == pytest.approx(float(rows[1]["val_dice"]), abs=1e-3)  # a voxel may turn


def test_every_case_counts_once_in_several_processes(uneven, overlays, alone, tmp_path, capsys):
    """Validation in training, `nny evaluate` and `nny infer` on shares that differ in size."""
    (tmp_path / "work.py").write_text(WORK)
    names = ["inference.yaml", "train.yaml", *workflows.overlay_paths(overlays)]
    configs = [str(CONFIGS / name) for name in names]
    places = [str(uneven / "data"), str(alone)]
    printed = several(
        tmp_path, tmp_path / "work.py", *places, tmp_path / "two", *configs, CONFIGS / "multi_gpu_train.yaml"
    )
    arguments = ["work.py", *places, str(tmp_path / "one"), *configs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        exec(compile(WORK, "work.py", "exec"), {})
    one, two = (json.loads(re.search("SCORES (.*)", text)[1]) for text in (capsys.readouterr().out, printed))
    for fold in ("0", "1"):
        assert len(two[fold]["cases"]) == FOLDS[int(fold)]
        assert two[fold]["cases"] == one[fold]["cases"]
        assert two[fold]["mean"] == pytest.approx(np.mean(one[fold]["cases"]), rel=1e-6)
    for name in ("per_case.csv", "summary.json", "datalist.json"):
        own, theirs = ((folder / "evaluation" / name).read_bytes() for folder in (alone, tmp_path / "two"))
        assert own == theirs, name
    assert len(pd.read_csv(tmp_path / "two" / "evaluation" / "per_case.csv")) == FOLDS[0]
    masks = sorted(file.name for file in (alone / "masks").glob("*.nii.gz"))
    assert masks == sorted(file.name for file in (tmp_path / "two" / "masks").glob("*.nii.gz"))
    assert len(masks) == sum(FOLDS.values())
    for name in masks:
        images = [nib.load(folder / "masks" / name) for folder in (alone, tmp_path / "two")]
        np.testing.assert_array_equal(*(np.asarray(image.dataobj) for image in images))


def test_folds_in_two_processes_are_those_of_one(uneven, overlays, tmp_path):
    """`nny crossval` started by torchrun: each process takes a fold, which it trains as if it were alone."""
    common = ["--epochs", 1, "--batch_size", 2]
    arguments = ["crossval", uneven / "data", tmp_path / "cv", overlays, "--folds", "0,1", *common]
    printed = several(tmp_path, "--no-python", ROOT / "nny", *arguments)
    assert "still to do: 2" in printed
    settings = {"epochs": 1, "val_interval": 1, "batch_size": 2}
    workflows.train(str(uneven / "data"), str(tmp_path / "one"), overlays, fold=1, **settings)
    one, two = (
        torch.load(run / "model.pt", weights_only=True) for run in (tmp_path / "one", tmp_path / "cv" / "fold1")
    )
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-6, rtol=0)
    assert (tmp_path / "cv" / "fold0" / "crossval.json").is_file()


def test_runs_of_a_comparison_in_two_processes_are_those_of_one(uneven, overlays, tmp_path):
    """`nny compare` started by torchrun: each process makes a run as if it were alone; one process writes the page."""
    data, output = uneven / "data", tmp_path / "compare"
    arguments = ["compare", "--dataset", data, "--output", output, "--overlays", overlays, "--networks", "base"]
    arguments += ["--seeds", "0,1", "--epochs", 1, "--batch_size", 2]
    assert "2 of 2 runs are finished" in several(tmp_path, "--no-python", ROOT / "nny", *arguments)
    workflows.train(str(data), str(tmp_path / "one"), overlays, seed=1, epochs=1, val_interval=1, batch_size=2)
    one, two = (
        torch.load(run / "model.pt", weights_only=True) for run in (tmp_path / "one", output / "runs" / "base-seed1")
    )
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-6, rtol=0)
    page = compare(
        dataset=str(data), output=str(output), overlays=overlays, networks="base", seeds=(0, 1), epochs=1, batch_size=2
    )
    assert page == str(output / "index.html")
    board = pd.read_csv(output / "leaderboard.csv")
    assert board["seeds"].unique().tolist() == [2]
