"""The trial of bundles that reading alone cannot refuse."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from scripts.verify import verify
from support import ROOT
from verify.bundles import balls, edit, insert, released, resum, root, write_weights  # noqa: F401

pytestmark = pytest.mark.e2e


def test_a_folder_passes_and_stays_as_it_is(root):  # noqa: F811
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    verify(str(root))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def refused(root, message):  # noqa: F811
    resum(root)
    with pytest.raises(ValueError, match=message):
        verify(str(root))


def test_network_that_wants_more_memory_than_there_is(root):  # noqa: F811
    edit(root / "configs" / "inference.yaml", "feature_size: 4", "feature_size: 400000")
    refused(root, r"models/model\.pt: needs more memory than it is given")


def test_weights_of_another_network_without_torchscript(root):  # noqa: F811
    other = {"network_def::encoder::feature_size": 8, "network_def::decoder::channels": [8, 8, 16, 32]}
    write_weights(root / "configs" / "inference.yaml", root / "models" / "model.pt", bottleneck_channels=32, **other)
    (root / "models" / "model.ts").unlink()
    refused(root, r"models/model\.pt: holds the weights of another network: \d+ of another shape: .* expected")


def test_what_a_configuration_writes_elsewhere(root, tmp_path):  # noqa: F811
    """A name that may be called, with a path of the machine: a start-up file of the shell, say."""
    outside = tmp_path / "outside"
    write = f"$scripts.fine_tuning.keep_statistics(@clinical_schema, @bundle_root, '{outside}/clinical.json')"
    insert(root / "configs" / "inference.yaml", f"initialize: ['$import scripts', \"{write}\"]")
    resum(root)
    with pytest.raises(ValueError, match=r"configs/inference\.yaml: PermissionError.*outside"):
        verify(str(root))
    assert not outside.exists()


def test_property_that_monai_wants(root):  # noqa: F811
    edit(root / "configs" / "inference.yaml", "^inferer:", "other_inferer:")
    refused(root, r"configs/inference\.yaml: .*inferer")


def test_metadata_with_another_number_of_classes(root):  # noqa: F811
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 3
    path.write_text(json.dumps(metadata))
    refused(root, r"metadata\.json, network_data_format: ValueError: output channel number `2` doesn't match: `3`")


def test_stopped_in_the_middle_of_the_trial(released, tmp_path):  # noqa: F811
    """Neither the process that tries the network nor the private copy outlives a SIGTERM."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT / "bundle")}
    command = [sys.executable, "-m", "scripts", "verify", str(released)]
    process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trial = []
    while not trial:
        assert process.poll() is None, "it ended before its trial was seen"
        trial = [child for child in process.children() if any("trial.py" in word for word in child.cmdline())]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert not any(child.is_running() for child in trial)
    assert not list(temporary.iterdir())
