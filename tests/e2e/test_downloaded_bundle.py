"""MONAI's own commands on a release: download from a server, inference and fine-tuning from any folder."""

import json
import os
import subprocess
import sys

import nibabel as nib
import pytest
import torch
from scripts.release import release
from support import ROOT
from test_download import server  # noqa: F401
from verify.bundles import balls, released  # noqa: F401

pytestmark = pytest.mark.e2e


def command(*arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def monai(*arguments, cwd):
    return command(sys.executable, "-m", "monai.bundle", *arguments, cwd=cwd)


def test_monai_downloads_segments_and_fine_tunes(server, released, balls, tmp_path):  # noqa: F811
    address, _ = server
    here = tmp_path / "somewhere"
    here.mkdir()
    bundles = tmp_path / "bundles"
    where = ("--bundle_dir", str(bundles), "--url", f"{address}/{released.name}")
    monai("download", "--name", "tiny", "--source", "github", *where, cwd=here)
    folder = bundles / "tiny"
    command(str(ROOT / "nny"), "verify", str(folder), cwd=here)

    image = balls / "imagesTr" / "ball_00.nii.gz"
    data = ("--dataset_dir", str(image), "--output_dir", str(tmp_path / "masks"))
    monai("run", "--config_file", str(folder / "configs" / "inference.yaml"), *data, cwd=here)
    mask = nib.load(tmp_path / "masks" / "ball_00_seg.nii.gz")
    assert mask.shape == nib.load(image).shape

    data = ("--dataset_dir", str(balls), "--output_dir", str(tmp_path / "run"), "--epochs", "1", "--val_interval", "1")
    monai("run", "fine_tuning", "--config_file", str(folder / "configs" / "train.yaml"), *data, cwd=here)
    tuned, started = (torch.load(f, weights_only=True) for f in (tmp_path / "run/model.pt", folder / "models/model.pt"))
    assert tuned.keys() == started.keys()
    changed = [name for name in tuned if not torch.equal(tuned[name], started[name])]
    assert changed
    assert all(torch.allclose(tuned[name].float(), started[name].float(), atol=0.2) for name in tuned)
    statistics = (tmp_path / "run" / "clinical.json").read_text()
    assert json.loads(statistics) == json.loads((folder / "models" / "clinical.json").read_text())
    assert not list(here.iterdir())


def test_a_fresh_release_of_the_demo_network_passes(tmp_path):
    nny = str(ROOT / "nny")
    release(str(ROOT / "bundle" / "models" / "demo"), output=str(tmp_path), name="demo")
    (zipped,) = tmp_path.glob("*.zip")
    assert "expected answer" in command(nny, "verify", str(zipped), cwd=tmp_path)
    (tmp_path / "short.zip").write_bytes(zipped.read_bytes()[:-9])
    refused = subprocess.run([nny, "verify", "short.zip"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert refused.returncode != 0
    assert "short.zip: is no complete zip" in refused.stderr.strip().splitlines()[-1]
