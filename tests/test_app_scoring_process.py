"""Scores by the real process: right, and without a word when it or its server ends."""

import json
from pathlib import Path

import numpy as np
import psutil
from app_support import write_balls, write_run
from scoring_support import Store, background
from scripts.clinical import HCC_TACE_SCHEMA, ClinicalSchema, ClinicalTable
from support import CONFIGS

from monailabel_app.lib.models import find_source
from monailabel_app.lib.scoring import background as module
from monailabel_app.lib.scoring.table import Table
from monailabel_app.lib.versions import Versions


def test_process_that_does_not_start_fails_no_image(tmp_path):
    run = write_run(tmp_path / "run", CONFIGS / "fusion_none.yaml", spacing=4.0)
    (run / "model.pt").write_bytes(b"no weights")
    versions = Versions(tmp_path / "models", find_source("run", str(run), tmp_path))
    found = background(versions, Store("ab"), tmp_path)
    status = found.run()
    assert "did not start" in status["error"]
    assert (status["failed"], status["scored"]) == ({}, 0)


def test_real_process_scores_real_images(tmp_path):
    """Through the process, on images from disk with their patients' values; one is damaged, at one the process ends."""
    images = Path(write_balls(tmp_path / "studies", 8))
    clinical = images.parent / "clinical.csv"
    run = write_run(tmp_path / "run", table=clinical, spacing=4.0)
    (images / "damaged.nii.gz").write_bytes(b"no image")
    store = Store(["ball_00", "ball_02", "ball_01", "damaged"])

    def fetched(name):
        for child in psutil.Process().children() if name == "ball_02" else ():
            if "monailabel_app.lib.scoring.worker" in child.cmdline():
                child.kill()
        return str(images / f"{name}.nii.gz")

    store.get_image_uri = fetched
    store.get_image_info = lambda name: {"PatientID": "ball_07"} if name == "ball_01" else {}
    versions = Versions(tmp_path / "models", find_source("run", str(run), tmp_path))
    found = background(versions, store, tmp_path, clinical=clinical)
    status = found.run()
    assert status["error"] == ""
    assert list(status["failed"]) == ["ball_02", "damaged"]
    table = Table.load(found.file("0"))
    assert table.ids == ["ball_00", "ball_01"]
    assert np.isfinite(table.columns["scores"]).all()
    assert (table.columns["scores"] > 0).all()
    assert table.columns["features"].shape == (2, 16)
    assert (table.columns["features"][0] != table.columns["features"][1]).any()
    known = ClinicalTable(
        path=clinical,
        schema=ClinicalSchema.from_yaml(HCC_TACE_SCHEMA, columns=["age", "Sex"]),
        fitted=run / "clinical.json",
    )
    np.testing.assert_allclose(table.columns["clinical"], [known.vector("ball_00"), known.vector("ball_07")], rtol=1e-5)


def test_process_ends_without_a_word_when_the_server_has_gone(tmp_path, capfd):
    """A server that is stopped closes both pipes, though the process is at a case."""
    images = Path(write_balls(tmp_path / "studies", 2))
    clinical = images.parent / "clinical.csv"
    source = find_source("run", str(write_run(tmp_path / "run", table=clinical, spacing=4.0)), tmp_path)
    with module._worker(source, clinical) as (ask, answers):
        for name in ("ball_00", "ball_01"):
            case = {"id": name, "path": str(images / f"{name}.nii.gz"), "info": {}}
            print(json.dumps(case), file=ask, flush=True)
        assert json.loads(answers.readline())["id"] == "ball_00"
        answers.close()
    assert "Traceback" not in capfd.readouterr().err
