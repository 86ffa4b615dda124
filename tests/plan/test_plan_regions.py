"""A dataset of several channels and overlapping regions, as BraTS has, from the plan to the scores of its regions."""

import contextlib
import io
import json

import numpy as np
import pytest
import yaml
from plan_support import two_balls, write_dataset
from scripts import workflows
from scripts.handlers import read_log
from scripts.plan import memory
from scripts.plan.command import plan

REGIONS = {"whole": [1, 2], "core": [2]}
LABELS = ("background", "oedema", "core")


def tumour(seed):
    """A core within an oedema: the first channel shows both, the second, ten times as bright, the core alone."""
    rng = np.random.default_rng(seed)
    centre = tuple(rng.integers(6, 10, 3))
    label = two_balls((16, 16, 16), {1: [centre]}, 5.5)
    label[two_balls((16, 16, 16), {1: [centre]}, 3.0) > 0] = 2
    channels = [100 * (label > 0), 1000 * (label == 2)]
    return np.stack([c + rng.normal(0, 0.05 * c.max(), c.shape) for c in channels], -1).astype(np.float32), label


@pytest.fixture(scope="module")
def planned(tmp_path_factory, tiny_network):
    folder = tmp_path_factory.mktemp("regions")
    options = {"spacing": (2.0, 2.0, 2.0), "labels": LABELS, "channels": ("FLAIR", "T1Gd"), "regions": REGIONS}
    data = write_dataset(folder / "data", [tumour(i) for i in range(5)], **options)
    path = folder / "dataset_tumour.yaml"
    options = {"network": str(tiny_network), "memory": 20, "seconds": 1e-4, "output": str(path), "workers": 1}
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        pytest.MonkeyPatch.context() as patch,
    ):
        # in this process: starting one takes longer than the step
        patch.setattr(memory, "alone", lambda function, overlays, settings, _: function(overlays, settings))
        plan(str(data), **options, progress=False)
    return data, path, printed.getvalue()


def test_slow_steps_are_a_warning(planned):
    assert "Warning: A training step takes 0." in planned[2]
    assert "with the smallest patch already" in planned[2]


def test_overlay_has_regions_and_channels(planned):
    found = yaml.safe_load(planned[1].read_text())
    assert found["regions"] == REGIONS
    assert found["in_channels"] == 2
    assert found["labels"] == list(LABELS)
    assert found["intensity"] == {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    assert found["keep_largest"] == []
    assert len(found["class_ratios"]) == 3
    assert "in_channels: 2  # FLAIR, T1Gd" in planned[1].read_text()
    html = planned[1].with_suffix(".html").read_text()
    for words in ("regions", "FLAIR, T1Gd", "hole in the regions"):
        assert words in html


def test_regions_are_trained_and_scored(planned, tiny_network, tmp_path):
    data, path, _ = planned
    settings = {"epochs": 8, "val_interval": 8, "learning_rate": 0.02}
    workflows.train(str(data), str(tmp_path), [str(tiny_network), str(path)], **settings)
    log = read_log(tmp_path / "log.csv")
    assert float(log[-1]["train_loss"]) < 0.9 * float(log[0]["train_loss"])
    assert {"val_dice_whole", "val_dice_core"} <= set(log[-1])
    workflows.evaluate(str(tmp_path))
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert list(summary["classes"]) == list(REGIONS)
