"""What the tests of releases share: tiny runs of any variant, their zips, and bundles run without this repository."""

import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import Future
from pathlib import Path

import yaml
from networks.tiny import TINY
from scripts import workflows
from scripts.release import release

COMMON = {
    "labels": ["background", "ball"],
    "class_ratios": [1, 1],
    "spacing": [2.0, 2.0, 2.0],
    "intensity": {"_target_": "NormalizeIntensityd", "keys": "image"},
    "keep_largest": [1],
    "num_workers": 0,
    "warmup_epochs": 1,
    "inferer::overlap": 0.0,
    "inferer::sw_batch_size": 16,
}
ONE_STEP = {"epochs": 1, "val_interval": 1, "batch_size": 4, "crops_per_case": 1}

SAID = {
    "name": "ball_ct_segmentation",
    "version": "1.2.0",
    "changelog": {"1.2.0": "More balls", "1.1.0": "Balls"},
    "data_source": "Balls that a test drew",
    "data_licence": "CC0-1.0",
    "intended_use": "Tests",
    "authors": "A. Tester",
}

# runs each job as `python -m monai.bundle run` does, with the bundle's own scripts, in one process to import torch once
WORKER = """
import importlib, json, logging, pathlib, runpy, sys, warnings
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
from monai.bundle import ConfigWorkflow
path = list(sys.path)
for job in json.loads(sys.argv[1]):
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    configs = job["root"] + "/configs/"
    workflow = ConfigWorkflow(
        config_file=[configs + name for name in job["configs"]], meta_file=configs + "metadata.json",
        logging_file=False, run_id=job["id"], **job["overrides"],
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    import scripts
    assert scripts.__file__.startswith(job["root"]), scripts.__file__
    for file in pathlib.Path(job["root"], "scripts").rglob("*.py"):  # also those that this job did not need
        name = file.relative_to(job["root"]).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        importlib.import_module(name)
    if "trial" in job:
        trial = job["trial"]
        places = map(pathlib.Path, (job["root"], trial["work"], trial["schema"]))
        bundle = runpy.run_path(trial["code"])["Bundle"](*places)
        for check in trial["checks"]:
            problem = getattr(bundle, check)()
            assert not problem, (job["root"], check, problem)
"""


class InThisProcess:
    """Stands for a pool of processes and works at once; importing torch once more takes longer than tracing."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


def overlay(folder, name, fusion, *, planar=False):
    """A YAML file that makes a network as tiny as the tests of its contract do; planar: for slices."""
    tiny = TINY[name]
    changes = tiny.changes | ({"/spatial_dims": 2} | tiny.planar if planar else {})
    content = COMMON | {"patch_size": list(tiny.size[:2] if planar else tiny.size)}
    content |= {key[1:] if key.startswith("/") else f"network_def::{key}": value for key, value in changes.items()}
    if fusion != "none":
        content["clinical_columns"] = ["age", "Sex"]
    if fusion == "cross_attention":
        content["fusion_def::num_heads"] = 2
    path = folder / f"{name}_{fusion}{'_planar' * planar}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train_variant(data, folder, name, fusion, *, planar=False):
    """Train one step of a tiny variant; the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / f"{name}_{fusion}{'_2d' * planar}"
    overlays = [f"network_{name}", f"fusion_{fusion}", str(overlay(folder, name, fusion, planar=planar))]
    workflows.train(str(data), str(run), overlays, **ONE_STEP)
    return run


def unpack(archive, folder):
    """Unpack a released zip; its one top folder."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
        (top,) = {Path(name).parts[0] for name in file.namelist()}
    return folder / top


def release_and_unpack(run, folder, **said):
    """Release a run; the zip and the unpacked bundle."""
    archive = release(str(run), str(folder / "dist"), **said)
    return Path(archive), unpack(archive, folder / "unpacked")


def job(root, run_id, *configs, **overrides):
    """One run of a bundle for `run_bundles`."""
    return {"root": str(root), "id": run_id, "configs": configs, "overrides": overrides}


def with_trial(job, work):
    """The same job, and then the checks of `nny verify` that need a process."""
    from scripts.verify import sandbox

    work.mkdir(parents=True)
    schema = Path(job["root"]) / "docs" / "schema.json"
    trial = {"code": str(sandbox.TRIAL), "work": str(work), "schema": str(schema), "checks": list(sandbox.CHECKS)}
    return job | {"trial": trial}


def outside(arguments, folder, *, timeout=280):
    """Run Python from an empty folder, without this repository on its path; its output."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-9000:]
    return done.stdout


def run_bundles(jobs, folder, *, timeout=280):
    """Run unpacked bundles from an empty folder, each with its own scripts."""
    return outside(["-P", "-c", WORKER, json.dumps(jobs)], folder, timeout=timeout)
