"""A bundle as it is released, in the app and in MONAI Label's own: the masks of the run, and a training from there."""

import shutil
import socket
import sys
import time
import urllib.error
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from app_support import app, write_balls
from scripts import workflows
from scripts.release import release
from server_support import PATIENCE, Server, stock_command
from support import tiny_overlay

pytestmark = pytest.mark.e2e
STOCK = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
# MONAI Label's own tasks import torchvision, of which a build for another torch lacks its operators
OPERATORS = """
import re, sys, torch
library = torch.library.Library("torchvision", "FRAGMENT")
while True:
    try:
        import torchvision
        break
    except RuntimeError as error:
        name = re.search(r"operator torchvision::(\\w+) does not exist", str(error))[1]
        library.define(name + "(Tensor x) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("released")


@pytest.fixture(scope="module")
def images(folder):
    return write_balls(folder / "cohort", 6)


@pytest.fixture(scope="module")
def run(images, folder):
    run = folder / "balls"
    workflows.train(str(images.parent), str(run), str(tiny_overlay(folder)), epochs=2, val_interval=1)
    workflows.evaluate(str(run))
    return run


@pytest.fixture(scope="module")
def archive(run, folder):
    return Path(release(str(run), output=str(folder / "dist")))


def assert_same_mask(file, other):
    mask, expected = nib.load(file), nib.load(other)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
    assert np.asarray(mask.dataobj).any()


def test_zip_is_served_and_trained(images, run, archive, tmp_path):
    table = images.parent / "clinical.csv"
    studies = shutil.copytree(images, tmp_path / "images")
    shutil.copytree(images.parent / "labelsTr", studies / "labels" / "final")
    served = app(studies, bundle=f"balls={archive}", clinical=table, output=tmp_path / "out")
    workflows.infer(str(images / "ball_03.nii.gz"), str(tmp_path), run=str(run), clinical=str(table))
    assert_same_mask(served.infer({"model": "balls", "image": "ball_03"})["file"], tmp_path / "ball_03_seg.nii.gz")

    stats = served.train({"model": "balls", "max_epochs": 10, "learning_rate": 0.01})
    assert stats["verdict"]["compared_with"] == "0"
    assert stats["verdict"]["dice"] > stats["verdict"]["served_dice"]
    assert stats["served"] == "1"


@pytest.mark.skipif(not STOCK.is_dir(), reason=f"MONAI Label's sample apps are not in {STOCK}")
def test_stock_app_serves_it(images, run, archive, tmp_path, monkeypatch):
    """A, C: the unpacked zip in <app>/model/ of MONAI Label's monaibundle app, which asks nobody for anything."""
    stock = shutil.copytree(STOCK, tmp_path / "monaibundle", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.unpack_archive(archive, stock / "model")
    (bundle,) = (stock / "model").iterdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OPERATORS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))  # neither our bundle nor our app
    monkeypatch.setenv("MONAI_LABEL_DATASTORE_AUTO_RELOAD", "false")
    studies = shutil.copytree(images, tmp_path / "images")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = (("models", bundle.name), ("zoo_source", "ngc"), ("sam2", "false"))
    server = Server(cwd=tmp_path, command=stock_command(stock, studies, port, *conf))
    try:
        server.address = f"http://127.0.0.1:{port}"
        mask = tmp_path / "mask.nii.gz"
        mask.write_bytes(answer(server, f"/infer/{bundle.name}?image=ball_03&output=image"))
        workflows.infer(str(images / "ball_03.nii.gz"), str(tmp_path), run=str(run))
        assert_same_mask(mask, tmp_path / "ball_03_seg.nii.gz")
    finally:
        server.process.kill()
        server.process.wait()
    assert "github" not in server.log.read_text().lower()


def answer(server, path):
    """What the server answers, once it listens."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return server.get(path, "POST")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.read()}\n{server.log.read_text()[-3000:]}") from error
        except urllib.error.URLError:
            assert time.monotonic() < end, server.log.read_text()
            time.sleep(0.5)
