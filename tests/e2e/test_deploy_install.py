"""The install steps of the image, in a fresh environment."""

import os
import shutil
import subprocess
import sys

import pytest
from deploy_support import DOCKERFILES, values
from support import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.matrix]


@pytest.mark.timeout(3000)
def test_install_steps_give_an_environment_that_serves(tmp_path):
    """The RUN steps of the Dockerfile, in its order; torch comes from pip's own index, as for GPUs."""
    steps = [step for step in values(DOCKERFILES["app"], "RUN") if "python -m" in step]
    assert len(steps) == 4
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    }
    environment |= {"TORCH_INDEX": "https://pypi.org/simple", "SAM2_BUILD_CUDA": "0", "HOME": str(tmp_path / "data")}
    python = f"{sys.base_prefix}/bin"
    for step in steps:
        environment["PATH"] = f"{tmp_path}/venv/bin:{python}:{os.environ['PATH']}"
        command = step.replace("/opt/venv", f"{tmp_path}/venv")
        done = subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{step}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    where = subprocess.run(["python", "-m", "pip", "--version"], env=environment, capture_output=True, text=True)
    assert str(tmp_path) in where.stdout

    program = tmp_path / "nny"
    ignored = shutil.ignore_patterns("runs", "data", "eval", "input", "docs", "__pycache__")
    shutil.copytree(ROOT / "bundle", program / "bundle", ignore=ignored)
    shutil.copytree(ROOT / "monailabel_app", program / "monailabel_app", ignore=ignored)
    environment["PYTHONPATH"] = f"{program}/bundle:{program}"
    (tmp_path / "data").mkdir(exist_ok=True)  # pip may have made it for its cache
    for module, word in (("scripts", "infer"), ("monailabel_app.serve", "--allow_remote")):
        command = ["python", "-m", module, "--help"]
        done = subprocess.run(command, cwd=tmp_path / "data", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert word in done.stdout + done.stderr
    code = "import scripts.segment, torch; print(torch.__version__)"
    done = subprocess.run(["python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(
        next(p[7:] for p in (ROOT / "requirements.txt").read_text().split() if "torch==" in p)
    )
