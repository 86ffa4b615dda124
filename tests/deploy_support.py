"""What the tests of deploy/ share: the instructions of a Dockerfile, and the files of the folder."""

import re

import yaml
from support import ROOT

DEPLOY = ROOT / "deploy"
DOCKERFILES = {"app": DEPLOY / "Dockerfile", "orthanc": DEPLOY / "orthanc" / "Dockerfile"}


def instructions(dockerfile):
    """Instruction and value of each line, continued lines put together, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in logical if line.strip()]


def final_stage(dockerfile):
    """The instructions after the last FROM: what becomes the image."""
    found = instructions(dockerfile)
    return found[max(i for i, (name, _) in enumerate(found) if name == "FROM") + 1 :]


def values(dockerfile, name):
    """The values of one instruction, in order."""
    return [value for instruction, value in instructions(dockerfile) if instruction == name]


def compose(name="docker-compose.yml"):
    return yaml.safe_load((DEPLOY / name).read_text())
