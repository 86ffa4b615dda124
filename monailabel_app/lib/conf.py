"""What the operator configures: the ``--conf`` keys, read and checked once at the start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.clinical_schema import suggestion
from scripts.workflows import DEMO_RUN

CONF = {
    "bundle": (
        "what segments: a run's folder, a released bundle (folder or zip), or bundle+overlay+overlay for a network "
        f"that has no weights yet; several as name=path,name=path (default: {DEMO_RUN.name}={DEMO_RUN})"
    ),
    "clinical": "table, xlsx or csv, with the patients' clinical variables (default: nothing is known of them)",
    "strategy": "name of the active-learning strategy that clients are offered first (default: the app's own)",
    "output": "folder for versions, scores and replaced labels (default: nny/ in the folder of the studies)",
    "epochs": "epochs of a training that a client starts without saying how many (default: 50)",
    "held_out": "share of the patients that never train but judge new versions, above 0 and below 1 (default: 0.2)",
    "margin": "how much lower the Dice on held-out patients may be for a new version to be served (default: 0.01)",
    "allow_remote": "true: answer other computers too, although there is no authentication (default: false)",
    "names": "names, parted by commas, by which other computers may call the server with allow_remote (default: any)",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The ``--conf`` of the command line, checked.

    ``models`` maps the name of each model to what it is made of, as the operator wrote it.
    """

    models: Mapping[str, str]
    clinical: Path | None
    strategy: str | None
    output: Path
    epochs: int
    held_out: float
    margin: float
    allow_remote: bool
    names: tuple[str, ...]


def read_conf(conf: Mapping[str, object], studies: str) -> Options:
    """Check the ``--conf`` keys and values.

    Args:
        conf: key to text, as MONAI Label hands them over.
        studies: folder (or address) of the studies.

    Returns:
        The options.

    Raises:
        ValueError: an unknown key, or a value that cannot be used; the message says what there is.
        FileNotFoundError: no such clinical table.
    """
    unknown = sorted(set(conf) - set(CONF) - {"server_mode"})
    if unknown:
        known = "; ".join(f"{key}: {meaning}" for key, meaning in CONF.items())
        raise ValueError(
            f"The app has no --conf {', '.join(unknown)}{suggestion(unknown[0], CONF)}. There are {known}."
        )
    values = {key: str(value).strip() for key, value in conf.items() if str(value).strip()}
    clinical = _path(values["clinical"]) if "clinical" in values else None
    if clinical is not None and not clinical.is_file():
        raise FileNotFoundError(f"There is no clinical table {clinical}.")
    return Options(
        models=_models(values.get("bundle", str(DEMO_RUN))),
        clinical=clinical,
        strategy=values.get("strategy"),
        output=_path(values["output"]) if "output" in values else _default_output(studies),
        epochs=int(_number(values, "epochs", 50, 1, 100_000)),
        held_out=_number(values, "held_out", 0.2, 0.01, 0.99),
        margin=_number(values, "margin", 0.01, 0.0, 1.0),
        allow_remote=_truth(values, "allow_remote"),
        names=_names(values.get("names", "")),
    )


def _models(text: str) -> dict[str, str]:
    """Split ``name=path,name=path`` (or one path, whose last part is the name)."""
    models: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, sign, source = entry.partition("=")
        if not sign:
            name, source = Path(entry.split("+")[0]).expanduser().resolve().name.removesuffix(".zip"), entry
        if not NAME.fullmatch(name) or not source:
            raise ValueError(
                f"--conf bundle {text!r}: {entry!r} is no model. Expected a path, or name=path with a name of letters, "
                "digits, '_', '-' and '.'."
            )
        if name in models:
            raise ValueError(f"--conf bundle {text!r} has two models {name!r}. Name them: first=path,second=path.")
        models[name] = source
    if not models:
        raise ValueError(f"--conf bundle {text!r} names no model. Expected {CONF['bundle']}.")
    return models


def _number(values: Mapping[str, str], key: str, default: float, least: float, most: float) -> float:
    text = values.get(key, str(default))
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise ValueError(f"--conf {key} is {text!r}; expected a number from {least:g} to {most:g}: {CONF[key]}.")
    return number


def _truth(values: Mapping[str, str], key: str) -> bool:
    text = values.get(key, "false").lower()
    if text not in ("true", "false"):
        raise ValueError(f"--conf {key} is {text!r}; expected true or false: {CONF[key]}.")
    return text == "true"


def _names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    wrong = [name for name in names if not HOST.fullmatch(name)]
    if wrong:
        raise ValueError(f"--conf names has {wrong[0]!r}; expected {CONF['names']}, such as scans.example.org.")
    return names


def _default_output(studies: str) -> Path:
    if studies.startswith(("http://", "https://")):
        return _path("work") / "annotate" / re.sub(r"\W+", "_", studies.split("://", 1)[1]).strip("_")
    return _path(studies) / "nny"


def _path(text: str) -> Path:
    return Path(text).expanduser().resolve()
