"""Every network with every fusion, in 3D and in 2D: train a step, release, verify, export, run from the zip.

The trial of `nny verify` and the trace of `nny release` have processes of their own, as tests/verify and tests/release
try; here all variants of a network share one.
"""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from networks.tiny import FUSIONS, GRID, NETWORKS, TINY
from release_support import InThisProcess, job, release_and_unpack, run_bundles, train_variant, with_trial
from scripts import workflows
from scripts.release.facts import read_facts
from scripts.verify import verify
from support import ball_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
OTHERS = [pytest.param(name, marks=pytest.mark.matrix) for name in NETWORKS if name not in GRID]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ball_dataset(tmp_path_factory.mktemp("balls"), n=5, size=16)


def variants(name):
    """Fusions of a network; and, where it has one, its 2D form with clinical data."""
    planar = len(TINY[name].size) == 3 and TINY[name].planar is not None
    return [(fusion, False) for fusion in FUSIONS] + ([("cross_attention", True)] if planar else [])


@pytest.mark.parametrize("name", [*GRID, *OTHERS])
def test_every_variant_is_released_verified_exported_and_run(name, data, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.export.torchscript.ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr("scripts.verify.bundle.trial_problems", lambda *args, **kwargs: [])
    image = data / "imagesTr" / "ball_00.nii.gz"
    jobs, expected = [], {}
    for fusion, planar in variants(name):
        run = train_variant(data, tmp_path, name, fusion, planar=planar)
        archive, bundle = release_and_unpack(run, tmp_path / f"release_{run.name}", name=f"{run.name}_segmentation")
        verify(str(archive))
        _check_torchscript(bundle, run)
        known = {} if fusion == "none" else {"clinical_table_path": str(data / "clinical.csv")}
        for form, configs in (("network", []), ("torchscript", ["inference_torchscript.yaml"])):
            target = {"dataset_dir": str(image), "output_dir": str(tmp_path / form / run.name), **known}
            jobs.append(job(bundle, "inference", "inference.yaml", *configs, **target))
        jobs[-1] = with_trial(jobs[-1], tmp_path / "trial" / run.name)
        workflows.infer(str(image), str(tmp_path / "own" / run.name), str(run), known.get("clinical_table_path"))
        expected[run.name] = _mask(tmp_path / "own" / run.name)
    run_bundles(jobs, tmp_path / "empty", timeout=900)
    for run, own in expected.items():
        np.testing.assert_array_equal(_mask(tmp_path / "network" / run), own, err_msg=run)
        assert (_mask(tmp_path / "torchscript" / run) == own).mean() > 0.999, run  # one epoch leaves logits near a tie


def _mask(folder):
    return np.asarray(nib.load(folder / "ball_00_seg.nii.gz").dataobj)


def _check_torchscript(bundle, run):
    """The exported form gives the logits of the network, with what is known of a patient and with nothing."""
    facts = read_facts(run)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, facts.in_channels, *facts.patch, generator=generator)
    inputs = [()]
    if facts.schema is not None:
        known = torch.randn(2, facts.schema.n_features, generator=generator)
        inputs = [(known,), (torch.full_like(known, math.nan),)]
    scripted = torch.jit.load(bundle / "models" / "model.ts")
    with torch.no_grad():
        for clinical in inputs:
            logits = facts.network(image, *clinical)
            torch.testing.assert_close(scripted(image, *clinical), logits, atol=1e-3, rtol=1e-3)
