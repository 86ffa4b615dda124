"""Finished run folders become one table: a row for each variant, seed, case and class."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from scripts import BUNDLE_ROOT
from scripts.compare.probe import FILE as CALIBRATION
from scripts.datalists import patient_name
from scripts.report_run import RunFiles, read_run
from scripts.runs import MAY_CHANGE

NOTE = "compare.json"  # what `compare` notes of a run that it made: memory and budget
FUSIONS = {
    "NoFusion": "none",
    "AddFusion": "add",
    "ConcatFusion": "concat",
    "CrossAttentionFusion": "cross_attention",
}
FREE = MAY_CHANGE | {"seed", "checkpoint", "clinical_statistics", "tracking"}  # what runs of one variant may differ in


@dataclass(frozen=True)
class Run:
    """A finished run of a variant.

    Attributes:
        name: the variant, for example ``unet`` or ``swin_next_small + cross_attention``.
        network: name of its network overlay, as far as it is known.
        fusion: none, add, concat or cross_attention.
        seed: base seed.
        files: what its folder holds.
        config: its merged configuration.
        calibration: what `CaseProbe` measured; empty where it was not there.
        note: what `compare` noted when it made the run; empty for other runs.
    """

    name: str
    network: str
    fusion: str
    seed: int
    files: RunFiles
    config: Mapping[str, Any]
    calibration: Mapping[str, Any] = field(default_factory=dict)
    note: Mapping[str, Any] = field(default_factory=dict)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read finished runs.

    Args:
        folders: run folders, each ``path`` or ``name=path``; a folder that holds runs stands for all of them.

    Returns:
        One record a run, in the given order.

    Raises:
        FileNotFoundError: no such folder, or one without an evaluation.
        ValueError: no runs; the same variant and seed twice; or runs that were scored on different cases or classes.
    """
    runs = []
    for text in map(str, folders):
        name, _, path = text.rpartition("=")
        found = _inside(Path(path).expanduser().resolve())
        if name and len(found) > 1:
            raise ValueError(f"{text} names {len(found)} runs at once; give a name to one run folder.")
        runs += [_read(folder, name) for folder in found]
    if not runs:
        raise ValueError("There are no runs to compare. Give run folders, or --dataset and --networks to train some.")
    runs = _distinct(runs)
    _check_same_cases(runs)
    return runs


def _inside(folder: Path) -> list[Path]:
    """The runs in a folder: itself, or the finished ones among its subfolders."""
    if (folder / "evaluation" / "per_case.csv").is_file():
        return [folder]
    found = sorted(file.parents[1] for file in folder.glob("*/evaluation/per_case.csv"))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no evaluation (evaluation/per_case.csv), nor do its subfolders. Run `nny evaluate` on it."
        )
    return found


def _read(folder: Path, name: str) -> Run:
    files = read_run(folder)
    config = (yaml.safe_load(files.config) if files.config else None) or {}
    note = _json(folder / NOTE)
    network = note.get("network") or _network(files, config)
    fused = config.get("fusion_def")
    target = str(fused.get("_target_", "")).rpartition(".")[2] if isinstance(fused, dict) else ""
    fusion = FUSIONS.get(target, "none")
    name = name or (network if fusion == "none" else f"{network} + {fusion}")
    seed = int(config.get("seed", files.versions.get("seed", 0)))
    calibration = _json(folder / "evaluation" / CALIBRATION)
    return Run(name, network, fusion, seed, files, config, calibration, note)


def _network(files: RunFiles, config: Mapping[str, Any]) -> str:
    """Name of the network's overlay, out of the command that trained it or of the folder; else of its encoder."""
    overlays = re.findall(r"\bnetwork_(?!def\b)(\w+)", str(files.versions.get("command", "")))
    if overlays or (BUNDLE_ROOT / "configs" / f"network_{files.folder.name}.yaml").is_file():
        return overlays[0] if overlays else files.folder.name
    part: Any = config.get("network_def")
    for key in ("encoder", "network"):  # MONAI's networks stand in their encoder
        part = part.get(key, part) if isinstance(part, dict) else None
    target = str(part.get("_target_", "")) if isinstance(part, dict) else ""
    return target.rpartition(".")[2].removesuffix("Encoder") or files.folder.name


def _distinct(runs: list[Run]) -> list[Run]:
    """Runs whose names tell their configurations apart: the folder is added where one name has several."""
    known: dict[str, set[str]] = {}
    for run in runs:
        known.setdefault(run.name, set()).add(_fingerprint(run))
    runs = [
        run if len(known[run.name]) == 1 else Run(**{**vars(run), "name": f"{run.name} ({run.files.folder.name})"})
        for run in runs
    ]
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        other = seen.setdefault((run.name, run.seed), run.files.folder)
        if other != run.files.folder:
            raise ValueError(
                f"{other} and {run.files.folder} are both {run.name} with seed {run.seed}. Leave one out, or give them "
                "names: first=folder second=folder."
            )
    return runs


def _fingerprint(run: Run) -> str:
    """The configuration without what may differ between runs of one variant."""
    return json.dumps({k: v for k, v in run.config.items() if k not in FREE}, sort_keys=True, default=str)


def _check_same_cases(runs: Sequence[Run]) -> None:
    """Refuse runs that were scored on other cases or classes, whose means would say nothing about the networks."""
    first = runs[0]
    for run in runs:
        if run.files.per_case is None:
            raise ValueError(f"{run.files.folder}/evaluation/per_case.csv is empty. Run `nny evaluate` on it again.")
        for what in ("case_id", "class"):
            ours, theirs = set(first.files.per_case[what]), set(run.files.per_case[what])
            if ours != theirs:
                odd = sorted(ours ^ theirs)
                raise ValueError(
                    f"{run.files.folder} was scored on {len(theirs)} values of {what}, {first.files.folder} on "
                    f"{len(ours)}; these are in one alone: {', '.join(odd[:5])}{' …' * (len(odd) > 5)}. Evaluate all "
                    "runs on the same cases (nny evaluate <run> --dataset_dir <dataset> --fold <fold>)."
                )


def scores(runs: Sequence[Run]) -> pd.DataFrame:
    """All scores as one long table.

    Args:
        runs: the runs.

    Returns:
        Columns variant, seed, case_id, patient, group, class, and the metrics of ``per_case.csv``.
    """
    parts = []
    for run in runs:
        cases = {str(case.get("case_id")): case for case in _listed(run)}
        table = run.files.per_case.copy()
        table.insert(0, "variant", run.name)
        table.insert(1, "seed", run.seed)
        ids = table["case_id"]
        table.insert(3, "patient", [cases.get(i, {}).get("patient_id") or patient_name(i) for i in ids])
        table.insert(4, "group", [str(cases.get(i, {}).get("group") or "") for i in ids])
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _listed(run: Run) -> list[dict[str, Any]]:
    """Cases as training listed them: the list that an evaluation leaves names neither patient nor group."""
    lists = _json(run.files.folder / "datalist.json")
    return [case for cases in lists.values() for case in cases]


def differences(runs: Sequence[Run]) -> pd.DataFrame:
    """What the variants' configurations differ in besides the network, so that a reader sees whether terms are equal.

    Args:
        runs: the runs.

    Returns:
        One row a setting, one column a variant; empty when all agree.
    """
    own = {"network_def", "fusion_def", "network", "bottleneck_channels"} | FREE
    first = {run.name: run.config for run in reversed(runs)}
    names = list(dict.fromkeys(run.name for run in runs))
    keys = sorted({key for config in first.values() for key, value in config.items() if _plain(value)} - own)
    rows = {key: [str(first[name].get(key, "–")) for name in names] for key in keys}
    return pd.DataFrame({k: v for k, v in rows.items() if len(set(v)) > 1}, index=names).T


def _plain(value: Any) -> bool:
    """Whether a setting is a number, a text or a short list of them, and no definition."""
    return isinstance(value, str | int | float | bool | None) or (
        isinstance(value, list) and len(value) <= 4 and all(isinstance(item, int | float | str) for item in value)
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Delete it to have it made again.") from error
