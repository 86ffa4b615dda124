"""A training that is killed without warning, again and again, ends with the weights of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from scripts.handlers import read_log
from support import ROOT, ball_dataset, tiny_overlay

pytestmark = pytest.mark.e2e
EPOCHS = 16


def start(data, folder, overlay):
    command = [sys.executable, "-m", "scripts", "train", str(data), str(folder), str(overlay)]
    command += ["--epochs", str(EPOCHS), "--val_interval", "2", "--num_workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "bundle")}
    with (folder.parent / f"{folder.name}.txt").open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def epochs_done(folder):
    return len(read_log(folder / "log.csv"))


@pytest.mark.timeout(900)
def test_three_kills_change_nothing(tmp_path):
    data, overlay = ball_dataset(tmp_path / "data"), tiny_overlay(tmp_path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(data, whole, overlay).wait(timeout=300) == 0
    seed = random.randrange(10**6)
    print(f"seed of the kills: {seed}")  # the points are random, the result must not depend on them
    rng = random.Random(seed)
    for kill in range(3):
        process = start(data, cut, overlay)
        goal = kill * 4
        while epochs_done(cut) < goal and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, (tmp_path / "cut.txt").read_text()[-2000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(data, cut, overlay).wait(timeout=300) == 0
    for name in ("model.pt", "checkpoints/last.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (whole, cut))
        same(a, b, name)
    assert [row["train_loss"] for row in read_log(cut / "log.csv")] == [
        row["train_loss"] for row in read_log(whole / "log.csv")
    ]


def same(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
