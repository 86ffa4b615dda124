"""What a model card tells its reader to do, as it stands, in an empty folder and an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import ThreadingHTTPServer

import nibabel as nib
import numpy as np
import pytest
import torch
from release_support import unpack
from scripts import workflows
from scripts.prepare.phantom import write_phantom_cohort
from support import ROOT
from test_download import Quiet, files_of

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(2400)]
NAME = "demo_ct_segmentation"
PASSED = ("metadata is verified with no error", "data shape of network is verified with no error")


def shell(script, folder, limit=1200):
    """Run lines of a shell as a user does who has Python and nothing else; what they print."""
    kept = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "OMP_", "HOME", "SSL_"))}
    environment = kept | {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin", "PYTHONNOUSERSITE": "1"}
    command = ["bash", "-euxc", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def zipped(tmp_path_factory):
    """The demo network as `nny release` packs it."""
    folder = tmp_path_factory.mktemp("dist")
    shell(f"{ROOT}/nny release --run {ROOT}/bundle/models/demo --output {folder} --name {NAME}", folder)
    (archive,) = folder.glob("*.zip")
    return archive


@pytest.fixture(scope="module")
def bundle(zipped, tmp_path_factory):
    """The same, unpacked elsewhere, to compare with."""
    return unpack(zipped, tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="module")
def followed(zipped, bundle, tmp_path_factory):
    """The folder in which every command of the card was run, and what they printed."""
    here = tmp_path_factory.mktemp("here")
    shutil.copy(zipped, here)
    size = {"matrix": 64, "slices": 28, "folds": 3}
    write_phantom_cohort(str(here / "dataset"), cases=3, layout="msd", workers=1, progress=False, **size)
    shutil.copy(here / "dataset" / "imagesTr" / "HCC_001.nii.gz", here / "scan.nii.gz")
    card = (bundle / "docs" / "README.md").read_text()
    script = "".join(re.findall(r"```bash\n(.*?)```", card, re.DOTALL))
    assert script.count("python -m monai.bundle") == 6
    script = script.replace("--epochs 50", "--epochs 1 --val_interval 1")
    (python,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return here, shell(f"{script}\npython - <<'END'\n{python}END\npip check", here)


def test_monai_finds_no_fault(followed):
    assert all(message in followed[1] for message in PASSED)


def test_mask_is_that_of_the_run(followed, tmp_path):
    here, _ = followed
    workflows.infer(str(here / "scan.nii.gz"), str(tmp_path), str(ROOT / "bundle" / "models" / "demo"))
    expected = nib.load(tmp_path / "scan_seg.nii.gz")
    for name in ("masks/scan_seg.nii.gz", "mask.nii.gz"):
        mask = nib.load(here / name)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj), err_msg=name)
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)


def test_fine_tuning_went_on_from_the_released_weights(followed, bundle):
    tuned = torch.load(followed[0] / "tuned" / "model.pt", weights_only=True)
    started = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert tuned.keys() == started.keys()
    assert any(not torch.equal(tuned[name], started[name]) for name in tuned)
    assert all(torch.allclose(tuned[name].float(), started[name].float(), atol=0.2) for name in tuned)


def test_every_case_was_scored(followed):
    assert (followed[0] / "scores" / "evaluation" / "summary.json").is_file()


def test_exported_form_is_that_of_the_bundle(followed, bundle):
    image = torch.randn(1, 1, 48, 48, 32, generator=torch.Generator().manual_seed(0))
    unknown = torch.full(np.load(bundle / "models" / "check.npz")["clinical"].shape, torch.nan)
    own, exported = (torch.jit.load(file) for file in (bundle / "models" / "model.ts", followed[0] / "model.ts"))
    torch.testing.assert_close(exported(image), own(image, unknown), atol=1e-3, rtol=1e-3)


def test_environment_holds_what_the_bundle_declares(followed, bundle):
    freeze = shell("environment/bin/python -m pip list --format=freeze", followed[0])
    installed = {line.split("==")[0].lower(): line.split("==")[-1] for line in freeze.splitlines() if "==" in line}
    declared = dict(line.split("==") for line in (bundle / "requirements.txt").read_text().split())
    assert {name: installed[name.lower()].partition("+")[0] for name in declared} == declared
    assert not {"monailabel", "pytest", "onnxruntime", "matplotlib"} & set(installed)


def test_nothing_else_was_written(followed, bundle):
    here, _ = followed
    made = {"environment", "masks", "tuned", "scores", "model.ts", "mask.nii.gz", NAME}
    assert {path.name for path in here.iterdir()} == made | {"dataset", "scan.nii.gz", f"{NAME}_v0.1.0.zip"}
    kept = {name: content for name, content in files_of(here / NAME).items() if not name.endswith(".pyc")}
    assert kept == files_of(bundle)


def test_monai_downloads_it(followed, zipped, bundle, tmp_path):
    python = followed[0] / "environment" / "bin" / "python"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(zipped.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addresses = {"web": f"http://127.0.0.1:{server.server_port}/{zipped.name}", "path": zipped.as_uri()}
        for folder, address in addresses.items():
            source = f"--name {NAME} --source github --url {address} --bundle_dir {folder}"
            shell(f"{python} -m monai.bundle download {source}", tmp_path)
        server.shutdown()
    for folder in addresses:
        assert files_of(tmp_path / folder / NAME) == files_of(bundle)
