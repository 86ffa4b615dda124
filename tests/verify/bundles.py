"""Bundles to verify: a small release that is right, and the steps with which an attacker changes one."""

import hashlib
import io
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from scripts.clinical import ClinicalSchema
from scripts.release import release
from scripts.runs import fit_clinical, inference_config
from support import CONFIGS, ball_dataset, tiny_overlay

SUMS = "SHA256SUMS"
# every payload makes this file, wherever it runs: in a folder that goes away nobody would see it
CANARY = os.path.join(tempfile.gettempdir(), f"canary_{os.getpid()}")
TOUCH = f"open('{CANARY}', 'w')"


class Call:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """The dataset of the tiny run."""
    return ball_dataset(tmp_path_factory.mktemp("balls"), 5)


@pytest.fixture(scope="session")
def released(tmp_path_factory, balls):
    """The zip of a tiny network with clinical data that nobody trained."""
    folder = tmp_path_factory.mktemp("released")
    run = folder / "tiny"
    run.mkdir()
    files = ["inference.yaml", "train.yaml"]
    config = ConfigParser.load_config_files([*(str(CONFIGS / name) for name in files), str(tiny_overlay(folder))])
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (run / "inference.yaml").write_text(yaml.safe_dump(inference_config(config), sort_keys=False))
    write_weights(run / "inference.yaml", run / "model.pt")
    schema = ClinicalSchema.from_yaml(CONFIGS / "clinical_hcc_tace.yaml", columns=["age", "Sex"])
    fit_clinical(schema, str(balls / "clinical.csv"), False, str(run / "clinical.json"), str(balls), 0)
    return Path(release(str(run), output=str(folder / "dist"), name="tiny", version="1.0.0"))


def write_weights(config, target, **overrides):
    """Random weights of the network in a configuration."""
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.update(overrides)
    torch.save(parser.get_parsed_content("network_def").state_dict(), target)


@pytest.fixture
def root(released, tmp_path):
    """The unpacked release, to be changed."""
    with zipfile.ZipFile(released) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked" / "tiny"


def resum(root):
    """Recompute the sums, as an attacker does."""
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    (root / SUMS).write_text("".join(lines))


def pack(root, target, **more):
    """Zip a bundle's folder; `more` are entries besides."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(path, f"{root.name}/{path.relative_to(root).as_posix()}")
        for name, content in more.items():
            archive.writestr(name, content)
    return target


def rewrite(path, change):
    """Rewrite the entries of a zip: `change` takes name and bytes, and gives bytes or None to leave one out."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            if content is not None:
                archive.writestr(name, content)


def edit(path, pattern, text):
    """Replace one place of a text file, which has to be there."""
    new, count = re.subn(pattern, lambda _: text, path.read_text(), count=1, flags=re.M)
    assert count == 1, pattern
    path.write_text(new)


def insert(path, line):
    """Put a line at the top of a YAML file."""
    path.write_text(f"{line}\n{path.read_text()}")


def saved(content):
    """Bytes of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def clone_of(root, target):
    """What cloning a bundle's repository at Hugging Face gives."""
    shutil.copytree(root, target)
    (target / ".git").mkdir()
    (target / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (target / ".gitattributes").write_text("*.pt filter=lfs diff=lfs merge=lfs -text\n")
    (target / "README.md").write_text("---\nlibrary_name: monai\n---\n")
    return target
