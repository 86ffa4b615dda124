"""Several trained networks as one: the mean of their class probabilities, over folds, seeds and kinds of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from scripts.clinical_schema import normalise
from scripts.segment import Segmentation, Segmenter
from scripts.transforms import slabs_on_source
from scripts.uncertainty import entropy_map

__all__ = ["Ensemble", "members_of"]

SETTINGS = "postprocessing.yaml"  # what `nny crossval` chose, beside its folds


class Ensemble(Segmenter):
    """Trained networks that segment together; used as a `Segmenter` is.

    Each network sees the image through its own preprocessing, window and clinical variables, and the probability of a
    class in a voxel of the source is the mean of those that the networks alone would give. Every network's logits are
    kept, on its own grid, until the mask is made.

    Args:
        models: runs, released bundles or zips, as of `Segmenter`; all with the same classes.
        device: as of `Segmenter`.
        clinical_table: xlsx or csv with the patients' clinical variables, for the networks that take some.
        **overrides: any id of the configuration, for all networks.

    Raises:
        FileNotFoundError: there is no finished run and no bundle.
        ValueError: no model, other classes or channels, masks that are cleaned in different ways, or a clinical table
            that no network takes.

    References:
        Isensee et al., "nnU-Net", Nature Methods 2021 (an ensemble of the five networks of a cross-validation).
    """

    def __init__(
        self,
        models: Sequence[str | Path],
        *,
        device: str | torch.device | None = None,
        clinical_table: str | None = None,
        **overrides: Any,
    ) -> None:
        if not models:
            raise ValueError("An ensemble needs at least one run.")
        table = {} if clinical_table is None else {"clinical_table_path": clinical_table}
        self.members = [Segmenter(model, device=device, **table, **overrides) for model in models]
        first = self.members[0]
        for model, member in zip(models, self.members, strict=True):
            self._check_like(models[0], first, model, member)
        if clinical_table is not None and not self.clinical_columns:
            raise ValueError(f"These networks were trained on images alone; they cannot use {clinical_table}.")
        self.labels, self.cleaning = first.labels, first.cleaning
        self._channels, self._preprocessing, self._postprocessing = (
            first._channels,
            first._preprocessing,
            first._postprocessing,
        )

    @property
    def clinical_columns(self) -> dict[str, str]:
        """Each clinical variable that some network takes, and what its value may be."""
        return {name: expected for member in self.members for name, expected in member.clinical_columns.items()}

    def of_case(self, case: Mapping[str, Any], *, probabilities: bool = False) -> Segmentation:
        """Segment a case of `scripts.datalists.inference_cases`, whose patient is looked up in the clinical table."""
        return self._segment(self._loaded(dict(case)), probabilities)

    def _predict(self, case: dict[str, Any]) -> dict[str, Any]:
        """The loaded case with the logits of each network, and the image that it saw, under ``pred``."""
        found = [member._predict(_for_member(case, member)) for member in self.members]
        return found[0] | {"pred": [(part["pred"].cpu(), part["image"].cpu()) for part in found]}

    def _score(self, found: Mapping[str, Any]) -> float:
        """Mean entropy of the foreground, on the grid of the source."""
        weighted = total = 0.0
        for _, part in slabs_on_source(found["pred"], found["image"]):
            seen = part.softmax(0).double()  # (classes, *, slab)
            foreground = (1 - seen[0]).clamp(min=0)
            weighted += float((entropy_map(seen) * foreground).sum())
            total += float(foreground.sum())
        return weighted / max(total, 1e-12)

    def _checked(self, clinical: Mapping[str, Any]) -> dict[str, Any]:
        """The clinical values, each known to a network and valid there."""
        unknown = [name for name in clinical if not any(_known({name: 0}, member) for member in self.members)]
        if unknown:
            raise ValueError(
                f"No network of the ensemble takes {unknown[0]!r}; they take "
                f"{', '.join(self.clinical_columns) or 'images alone'}."
            )
        for member in self.members:
            if member.clinical_columns:
                member._checked(_known(clinical, member))
        return dict(clinical)

    @staticmethod
    def _check_like(first: str | Path, one: Segmenter, model: str | Path, other: Segmenter) -> None:
        """Refuse networks whose masks would mean different things."""
        if other.labels != one.labels or other._channels != one._channels:
            raise ValueError(
                f"{model} has the classes {list(other.labels)} and {other._channels} channels, {first} has "
                f"{list(one.labels)} and {one._channels}; an ensemble needs the same."
            )
        if other.cleaning != one.cleaning:
            raise ValueError(
                f"{model} cleans its masks by {other.cleaning or 'nothing'}, {first} by {one.cleaning or 'nothing'}. "
                'Say what is to be done: --keep_largest "[1]" --remove_small "[]", for example.'
            )


def members_of(names: Sequence[str | Path], given: Mapping[str, Any]) -> tuple[list[Path], dict[str, Any]]:
    """Find the runs of an ensemble.

    Args:
        names: runs, bundles, or folders of `nny crossval`, which stand for their folds.
        given: ids of the configuration that the user sets.

    Returns:
        Their folders, and those ids with what `nny crossval` chose for the masks, where the user does not say.

    Raises:
        ValueError: a run twice, or different choices.
    """
    found: list[Path] = []
    chosen: list[dict[str, Any]] = []
    for name in names:
        place = Path(name).expanduser().resolve()
        folds = sorted(file.parent for file in place.glob("fold*/model.pt"))
        if folds and (place / SETTINGS).is_file():
            own = yaml.safe_load((place / SETTINGS).read_text()) | dict(given)
            chosen += [] if own in chosen else [own]
        found += folds or [place]
    twice = [str(path) for path in found if found.count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice, and would count twice. Name each run once.")
    if len(chosen) > 1:
        raise ValueError(
            f"{', '.join(map(str, names))} chose different ways to clean masks: {' and '.join(map(str, chosen))}. Say "
            'what is to be done: --keep_largest "[1]" --remove_small "[]", for example.'
        )
    return found, chosen[0] if chosen else dict(given)


def _for_member(case: Mapping[str, Any], member: Segmenter) -> dict[str, Any]:
    """The case as one network may have it: an image of its own, and the clinical values that it knows."""
    own = {**case, "image": case["image"].clone()}
    given = own.pop("clinical", None)
    return own if given is None or not member.clinical_columns else own | {"clinical": _known(given, member)}


def _known(clinical: Mapping[str, Any], member: Segmenter) -> dict[str, Any]:
    """The values of the variables that a network takes."""
    names = {normalise(name) for name in member.clinical_columns}
    return {name: value for name, value in clinical.items() if normalise(name) in names}
