"""The Slurm scripts hand the right command to `nny`; Slurm itself is played by its variables and two stubs."""

import os
import shutil
import subprocess

import pytest
from support import ROOT

SCRIPTS = sorted((ROOT / "deploy" / "slurm").glob("*.sbatch"))
JOB = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_JOB_ID": "41", "SLURM_JOB_NUM_NODES": "2"}
JOB |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": "4"}


@pytest.fixture
def submit(tmp_path):
    """Run a script in a repository whose `nny` and torchrun say what they were asked."""
    stubs = {"repo/nny": 'echo nny "$@"', "repo/.venv/bin/torchrun": 'echo torchrun "$@"'}
    stubs |= {"bin/srun": 'shift; exec "$@"', "bin/scontrol": "echo node7; echo node8"}
    for name, text in stubs.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    def run(name, *arguments, **job):
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path / "repo")}
        environment |= {key: value for key, value in (JOB | job).items() if value is not None}
        command = ["bash", str(ROOT / "deploy" / "slurm" / name), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)

    return run


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_is_sound(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(path)], check=False).returncode == 0
    assert "set -euo pipefail" in path.read_text()


def test_fold_of_the_task_and_then_all(submit):
    assert submit("crossval.sbatch", "data", "out", "tiny").stdout == "nny crossval data out tiny --folds 3\n"
    gather = submit("crossval.sbatch", "data", "out", "tiny", SLURM_ARRAY_TASK_ID=None)
    assert gather.stdout == "nny crossval data out tiny\n"


def test_share_of_the_task(submit):
    assert submit("infer.sbatch", "in put", "out").stdout == "nny infer in put out --shard 3/8\n"
    again = submit("infer.sbatch", "in", "out", SLURM_ARRAY_TASK_COUNT="2", SHARES="8")
    assert again.stdout == "nny infer in out --shard 3/8\n"
    assert submit("infer.sbatch", "in", "out", SLURM_ARRAY_TASK_ID=None).returncode != 0


def test_a_process_for_each_gpu_of_each_node(submit, tmp_path):
    done = submit("train.sbatch", "data", "run", "tiny", "--batch_size", "2")
    words = done.stdout.split()
    assert words[0] == "torchrun", done.stderr
    assert {"--nnodes=2", "--nproc_per_node=4", "--rdzv_id=41", "--rdzv_endpoint=node7:20041"} <= set(words)
    own = [str(tmp_path / "repo" / "nny"), "train", "data", "run", "tiny", "--batch_size", "2"]
    assert words[-len(own) :] == own
