"""Two networks with two seeds on small phantoms, from the data to the page, stopped and gone on with."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compare_support import write_run
from scripts import workflows
from scripts.compare import compare, running
from scripts.compare.calibration import Reliability, region
from scripts.compare.collect import read_runs
from scripts.compare.cost import costs, macs, steps_per_epoch
from support import TINY, ball_dataset

UNET = """
bottleneck_channels: 32
deep_supervision: false
network_def:
  _target_: scripts.networks.YNet
  deep_supervision: false
  dropout: 0.0
  encoder:
    _target_: scripts.networks.MonaiEncoder
    network:
      _target_: monai.networks.nets.UNet
      spatial_dims: 3
      in_channels: 1
      out_channels: 2
      channels: [8, 16, 32]
      strides: [2, 2]
      num_res_units: 1
  fusion: '@fusion_def'
  decoder: {_target_: scripts.networks.MonaiDecoder, network: '%network_def::encoder::network'}
"""
EPOCHS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Dataset of balls from two sites, and overlays."""
    root = tmp_path_factory.mktemp("tiny")
    data = ball_dataset(root / "data")
    content = json.loads((data / "dataset.json").read_text())
    for i, case in enumerate(content["training"]):
        case["group"] = "north" if i < 5 else "south"
    (data / "dataset.json").write_text(json.dumps(content))
    (root / "tiny.yaml").write_text(TINY)
    (root / "small_unet.yaml").write_text(UNET)
    return root


def run(place, **settings):
    """Compare, with every run in this process: starting one for each takes longer than training it."""
    options = {"networks": f"{place / 'tiny.yaml'},{place / 'tiny.yaml'}+{place / 'small_unet.yaml'}", "epochs": EPOCHS}
    options |= {"dataset": str(place / "data"), "output": str(place / "out"), "seeds": (0, 1), "fusions": "none"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "alone", lambda function, *arguments: function(*arguments))
        return compare(**(options | settings))


@pytest.fixture(scope="module")
def finished(place):
    run(place, tracking="mlflow")
    return place / "out"


def test_every_network_and_seed_is_trained_and_scored(finished):
    board = pd.read_csv(finished / "leaderboard.csv")
    total = board[board["class"] == "Total"].set_index("variant")
    assert set(total.index) == {"tiny", "tiny+small_unet"}
    assert (total["seeds"] == 2).all()
    for name, row in total.iterrows():
        means = [
            json.loads((folder / "evaluation" / "summary.json").read_text())["total"]["dice"]["mean"]
            for folder in sorted((finished / "runs").glob(f"{name.replace('+', '_')}-none-seed*"))
        ]
        assert len(means) == 2
        assert row["dice"] == pytest.approx(np.mean(means))
        assert row["epochs"] == EPOCHS
    for name in ("parameters_m", "gmacs", "peak_gb", "step_s", "case_s", "ece"):
        assert (total[name] > 0).all(), name
    assert (finished / "figures" / "reliability.png").stat().st_size > 5000
    groups = pd.read_csv(finished / "groups.csv")
    assert set(groups["group"]) == {"north", "south"}


def test_calibration_is_that_of_the_saved_probabilities(finished, place, tmp_path):
    import nibabel as nib
    import torch

    folder = finished / "runs" / "tiny-none-seed0"
    found = json.loads((folder / "evaluation" / "calibration.json").read_text())
    images = tmp_path / "images"
    images.mkdir()
    (case,) = {row["case_id"] for row in found["cases"]} & {"ball_05"}
    image = images / f"{case}.nii.gz"
    image.write_bytes((place / "data" / "imagesTr" / image.name).read_bytes())
    workflows.infer(str(images), str(tmp_path / "out"), run=str(folder), save_probabilities=True)
    scores = nib.load(tmp_path / "out" / f"{case}_probabilities.nii.gz").get_fdata()
    label = np.asarray(nib.load(place / "data" / "labelsTr" / image.name).dataobj)
    box = region(label)
    counts = Reliability()
    counts.add(torch.from_numpy(scores[box]).movedim(-1, 0), torch.from_numpy(label[box].astype(np.int64)))
    own = next(row for row in found["cases"] if row["case_id"] == case)
    assert own["ece"] == pytest.approx(counts.summary()["ece"], abs=2e-3)
    assert own["seconds"] > 0


def test_the_same_call_trains_nothing_again_and_other_terms_are_refused(finished, place, monkeypatch):
    times = {file: file.stat().st_mtime_ns for file in (finished / "runs").glob("*/model.pt")}
    assert len(times) == 4
    monkeypatch.setattr(running, "make_run", lambda *_: pytest.fail("trained again"))
    run(place, tracking="mlflow")
    assert times == {file: file.stat().st_mtime_ns for file in (finished / "runs").glob("*/model.pt")}
    with pytest.raises(ValueError, match="begun with other terms: epochs 4"):
        run(place, epochs=EPOCHS + 1, tracking="mlflow")


def test_a_run_that_was_stopped_before_its_end_is_gone_on_with(finished, place):
    note = finished / "runs" / "tiny-none-seed1" / "compare.json"
    before = (finished / "leaderboard.csv").read_text().splitlines()[1].split(",")[:6]
    note.unlink()  # as if killed while it was evaluated
    run(place, tracking="mlflow")
    assert note.is_file()
    assert (finished / "leaderboard.csv").read_text().splitlines()[1].split(",")[:6] == before


def test_mlflow_and_tensorboard_hold_the_curves(finished):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    client = MlflowClient(tracking_uri=f"sqlite:///{finished / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("nny").experiment_id])
    assert sorted(r.info.run_name for r in runs) == sorted(f.name for f in (finished / "runs").iterdir())
    (own,) = [r for r in runs if r.info.run_name == "tiny-none-seed0"]
    folder = finished / "runs" / own.info.run_name
    log = pd.read_csv(folder / "log.csv")
    points = sorted(client.get_metric_history(own.info.run_id, "train_loss"), key=lambda p: p.step)
    assert [p.step for p in points] == log["epoch"].tolist()
    assert [p.value for p in points] == pytest.approx(log["train_loss"].tolist())
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert own.data.metrics["test_dice"] == pytest.approx(summary["total"]["dice"]["mean"])
    assert own.data.params["learning_rate"] == "0.01"
    assert own.info.status == "FINISHED"
    assert {f.path for f in client.list_artifacts(own.info.run_id)} >= {"config.yaml", "per_case.csv"}
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert any("loss" in tag for tag in events.Tags()["scalars"])


def test_a_failing_network_leaves_the_others_alone(place, monkeypatch):
    def fail_first(job, *_):
        if job.seed == 0:
            raise RuntimeError("the system ended the process")
        write_run(job.folder, {"a": (0.5, 0.6), "b": (0.7, 0.8)}, note={"network": job.network, "peak_gb": 1})

    monkeypatch.setattr(running, "make_run", fail_first)
    html = Path(run(place, output=str(place / "half"), networks="unet,utnet")).read_text()
    assert "unet-none-seed0 could not be finished: RuntimeError: the system ended" in html
    assert "2 networks, 2 runs" in html
    monkeypatch.setattr(running, "make_run", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="Not one of 2 runs.*no memory"):
        run(place, output=str(place / "none"), networks="unet")


def test_two_processes_share_the_runs_and_one_writes_the_page(place, monkeypatch):
    """As torchrun starts them: each makes its own runs, as if it were alone, and one that fails stops nobody."""
    output, made = str(place / "shared"), []

    def make(job, *_):
        made.append((job.folder.name, "RANK" in os.environ))
        if job.folder.name == "utnet-none-seed1":
            raise RuntimeError("no memory")
        write_run(job.folder, {"a": (0.5, 0.6), "b": (0.7, 0.8)}, seed=job.seed, note={"network": job.network})

    monkeypatch.setattr(running, "make_run", make)
    parts = []
    for rank in ("0", "1"):
        with monkeypatch.context() as group:
            for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}.items():
                group.setenv(name, value)
            parts.append(run(place, output=output, networks="unet,utnet"))
            with pytest.raises(ValueError, match="minutes is 3.*Give --epochs"):
                run(place, output=output, networks="unet", epochs=None, minutes=3)
            with pytest.raises(ValueError, match="2 processes cannot write one database.*nny track"):
                run(place, output=output, networks="unet", tracking="mlflow")
            with pytest.raises(ValueError, match="start it without torchrun"):
                compare(output)
    assert parts[0].startswith("2 of 4 runs are finished. The same command without torchrun")
    assert parts[1].startswith("3 of 4 runs are finished; failed: utnet-none-seed1.")
    assert sorted(made) == [(f"{name}-none-seed{seed}", False) for name in ("unet", "utnet") for seed in (0, 1)]
    assert not (place / "shared" / "index.html").exists()
    made.clear()
    html = Path(run(place, output=output, networks="unet,utnet")).read_text()
    assert made == [("utnet-none-seed1", False)]
    assert f"2 networks, 3 runs, 2 cases of 2 patients · budget: {EPOCHS} epochs each" in html


def test_jobs_are_refused_before_anything_starts(place, tmp_path):
    with pytest.raises(ValueError, match="There is no overlay 'network_unt'"):
        run(place, output=str(tmp_path), networks="unt")
    with pytest.raises(ValueError, match="each network, fusion and seed once"):
        run(place, output=str(tmp_path), networks="unet,unet")
    with pytest.raises(ValueError, match="give the one that is the budget"):
        run(place, output=str(tmp_path), minutes=2)
    with pytest.raises(ValueError, match="expected a positive number"):
        run(place, output=str(tmp_path), epochs=-1)
    assert not (tmp_path / "runs").exists()


def test_minutes_become_epochs(place, monkeypatch):
    monkeypatch.setattr(running, "seconds_per_step", lambda config: 0.5)
    epochs = running.epochs_for([str(place / "tiny.yaml")], str(place / "data"), 1.0, {"fold": 0, "batch_size": 2})
    assert epochs == 60 / (0.5 * 4)  # 8 cases to train on
    with pytest.raises(ValueError, match="One epoch takes 0.033 minutes, and 0.001 are the budget"):
        running.epochs_for([str(place / "tiny.yaml")], str(place / "data"), 0.001, {})


def test_steps_of_an_epoch_are_those_of_the_protocol_or_of_all_cases(tmp_path):
    assert steps_per_epoch({"batch_size": 3}, 8) == 2
    assert steps_per_epoch({"batch_size": 3, "train": {"epoch_steps": 250}}, 8) == 250
    write_run(tmp_path / "a", {"c": (0.5, 0.5)}, config={"train": {"epoch_steps": 16}})  # an epoch takes 8 seconds
    assert costs(read_runs([tmp_path]))["step_s"] == 0.5


def test_a_step_and_multiply_accumulates_are_measured_on_the_network(place):
    overlays = [str(place / "tiny.yaml"), str(place / "small_unet.yaml"), "fusion_none"]
    config = running.merged(overlays, {"fold": 0, "dataset_dir": str(place / "data")})
    config |= {"device": "$torch.device('cpu')", "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1}}
    config["network_def"] |= {"out_channels": 2, "kernel_size": 3, "padding": 1}
    assert macs(config) == pytest.approx(2 * 27 * 24**3 / 1e9)
    assert running.seconds_per_step(config, rounds=1) > 0
