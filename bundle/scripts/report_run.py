"""What a run folder holds, read for its report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds; None or empty where a file is missing.

    Attributes:
        folder: the run folder, absolute.
        log: one row an epoch.
        per_case: one row per case and foreground class.
        summary: means over the cases, and the settings they were computed with.
        datalist: list name ("training", "validation") -> cases with absolute paths.
        config: text of the merged configuration.
        versions: what made the run.
    """

    folder: Path
    log: pd.DataFrame | None
    per_case: pd.DataFrame | None
    summary: dict[str, Any]
    datalist: dict[str, list[dict[str, Any]]]
    config: str | None
    versions: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """How the metrics were computed."""
        return self.summary.get("settings", {})

    @property
    def spacing_known(self) -> bool:
        """Whether distances are millimetres."""
        return bool(self.settings.get("spacing_known", True))

    @property
    def classes(self) -> list[str]:
        """Foreground class names in the order of their label values."""
        if self.summary.get("classes"):
            return list(self.summary["classes"])
        if self.per_case is not None:
            return list(dict.fromkeys(self.per_case["class"]))
        columns = [] if self.log is None else list(self.log)
        return [name.removeprefix("val_dice_") for name in columns if name.startswith("val_dice_")]

    @property
    def ranking(self) -> pd.Series:
        """Mean foreground Dice by case id, worst first; cases without any value are left out."""
        if self.per_case is None:
            return pd.Series(dtype=float)
        return self.per_case.groupby("case_id")["dice"].mean().dropna().sort_values(kind="stable")


def read_run(run: str | Path) -> RunFiles:
    """Read what a run folder holds.

    Args:
        run: folder of a training run or an evaluation.

    Returns:
        The files' contents.

    Raises:
        FileNotFoundError: the folder is missing, or holds neither log.csv nor evaluation/.
        ValueError: a file is malformed.
    """
    folder = Path(run).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected the folder of a training run or an evaluation.")
    evaluation = folder / "evaluation"
    if not (folder / "log.csv").exists() and not evaluation.is_dir():
        raise FileNotFoundError(
            f"{folder} holds neither log.csv (written by `nny train`) nor evaluation/ (written by `nny evaluate`); "
            "give the folder of a run."
        )
    config = folder / "config.yaml"
    return RunFiles(
        folder=folder,
        log=_read_table(folder / "log.csv", ("epoch", "train_loss"), text=()),
        per_case=_read_table(evaluation / "per_case.csv", ("case_id", "class", "dice"), text=("case_id", "class")),
        summary=_read_json(evaluation / "summary.json"),
        # an evaluation of other cases than the run's own says which
        datalist=_read_json(folder / "datalist.json") | _read_json(evaluation / "datalist.json"),
        config=config.read_text(encoding="utf-8", errors="replace") if config.exists() else None,
        versions=_read_json(folder / "versions.json") | _parameters(folder / "model.pt"),
    )


def _parameters(weights: Path) -> dict[str, int]:
    """Number of parameters in a file of weights; its tensors of whole numbers are index tables, not parameters."""
    if not weights.exists():
        return {}
    tensors = torch.load(weights, map_location="cpu", weights_only=True).values()
    return {"parameters": sum(t.numel() for t in tensors if t.is_floating_point())}


def _read_table(path: Path, required: tuple[str, ...], text: tuple[str, ...]) -> pd.DataFrame | None:
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        return None
    try:  # a case or class may be called "NA": only the number columns know missing values
        table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    missing = [name for name in required if name not in table]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {list(table)}.")
    numbers = [name for name in table if name not in text]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    return table if len(table) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} at the top, expected an object.")
    return content
