"""How grey values are made alike: by Hounsfield units where there are some, else volume by volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.plan.fingerprint import Fingerprint
from scripts.plan.geometry import Choice

CT = "CT"
AIR = -800.0  # HU: where a body lies in the image, the air around it is below
TAIL = 2.0  # a maximum so many times as far from the median as the percentile 99.5 is, is an outlier
EMPTY = 0.75  # nnU-Net's: if the box of non-zero voxels is smaller, zero means "outside" and not a grey value
_BOTH_ENDS = (-1.0, 1.0)  # of a CT window, once scaled


@dataclass(frozen=True)
class Modality:
    """What the images are.

    Attributes:
        ct: whether grey values are Hounsfield units in every channel.
        name: of the modality, e.g. ``CT``, ``MR``.
        reason: how one knows.
        guessed: whether it was guessed from the values.
        warning: what does not fit, or nothing.
    """

    ct: bool
    name: str
    reason: str
    guessed: bool
    warning: str = ""


def find_modality(data: Fingerprint, said: str = "") -> Modality:
    """Find out whether grey values are Hounsfield units.

    Args:
        data: the fingerprint.
        said: what the user says (``CT``, ``MR`` …), which is believed.

    Returns:
        The modality, with how it is known.
    """
    values = [_like_hu(data, channel) for channel in range(len(data.channels))]
    low = float(np.median(data.grey(0, "levels")[:, 1]))
    if said:
        return Modality(said.upper() == CT, said.upper(), "as you say", False, _doubt(said.upper() == CT, values, low))
    named = [name.strip() for name in data.channels]
    if all(name.lower() not in ("", "image", "volume") and not name.startswith("channel ") for name in named):
        ct = all(name.upper() == CT for name in named)
        return Modality(ct, ", ".join(named), "dataset.json says so", False, _doubt(ct, values, low))
    if all(values):
        return Modality(True, CT, f"guessed: 1 % of the voxels lie below {low:.0f}, as air does in HU", True)
    why = f"guessed: no air of {AIR:.0f} HU or less (percentile 1: {low:.4g}); if these are HU, --modality CT"
    return Modality(False, "MR", why, True)


def plan_intensity(data: Fingerprint, modality: Modality) -> dict[str, Choice]:
    """Choose how images are clipped and normalised, and what they are padded with.

    Args:
        data: the fingerprint.
        modality: of `find_modality`.

    Returns:
        ``intensity`` and ``padding_value``.

    Raises:
        ValueError: a CT whose labelled voxels all have one value.
    """
    return _window(data) if modality.ct else _standardise(data)


def _window(data: Fingerprint) -> dict[str, Choice]:
    inside = np.concatenate([data.foreground(channel) for channel in range(len(data.channels))])
    low, high = (float(v) for v in np.round(np.percentile(inside, (0.5, 99.5)), 1))
    if high <= low:
        raise ValueError(
            f"The labelled voxels of {data.folder} all have the value {low:g}: nothing to clip by. Are image and label "
            "mixed up? Else say that these are no Hounsfield units: --modality MR."
        )
    transform = {
        "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": low, "a_max": high, "b_min": _BOTH_ENDS[0],
        "b_max": _BOTH_ENDS[1], "clip": True,
    }  # fmt: skip
    return {
        "intensity": Choice(transform, f"HU; percentiles 0.5 and 99.5 of the labelled voxels are {low:g} and {high:g}"),
        "padding_value": Choice(_BOTH_ENDS[0], "that of air"),
    }


def _standardise(data: Fingerprint) -> dict[str, Choice]:
    channels = range(len(data.channels))
    tails = max(float(np.median(_tail(data, channel))) for channel in channels)
    share = float(np.median([record["box"] for record in data.records]))
    normalise: dict[str, Any] = {"_target_": "NormalizeIntensityd", "keys": "image"}
    clip: dict[str, Any] = {"_target_": "ClipIntensityPercentilesd", "keys": "image", "lower": 0.5, "upper": 99.5}
    if len(channels) > 1:
        normalise["channel_wise"] = clip["channel_wise"] = True
    why = "of each volume: z-score, as MR has no unit"
    if share < EMPTY:
        normalise["nonzero"] = True
        why = f"of each volume: z-score of what is not 0, which fills {share:.0%} of it"
        return {"intensity": Choice(normalise, why), "padding_value": Choice(0.0, "zero stays zero outside the body")}
    clips = tails > TAIL
    if clips:
        why += f"; the brightest voxels are cut off ({tails:.1f} times as far from the median as percentile 99.5)"
    transform = {"_target_": "Compose", "transforms": [clip, normalise]} if clips else normalise
    border = round(float(np.median([_border(record, clips) for record in data.records])), 1) + 0.0  # no -0.0
    return {
        "intensity": Choice(transform, why),
        "padding_value": Choice(border, "median at the border of the volumes, after the z-score"),
    }


def _tail(data: Fingerprint, channel: int) -> np.ndarray:
    """How far the maximum of each case lies from its median, in distances of the percentile 99.5."""
    levels = data.grey(channel, "levels")
    return (data.grey(channel, "max") - levels[:, 2]) / np.maximum(levels[:, 3] - levels[:, 2], 1e-6)


def _border(record: dict[str, Any], clips: bool) -> float:
    """The border of a volume after the z-score; mean over channels."""
    found = []
    for grey in record["channels"]:
        mean, std = grey["clipped"] if clips else (grey["mean"], grey["std"])
        border = min(max(grey["border"], grey["levels"][0]), grey["levels"][3]) if clips else grey["border"]
        found.append((border - mean) / std if std > 0 else 0.0)
    return float(np.mean(found))


def _like_hu(data: Fingerprint, channel: int) -> bool:
    """Whether the values look like Hounsfield units: air in at least 1 % of most volumes, nothing far below it."""
    low, least = data.grey(channel, "levels")[:, 1], data.grey(channel, "min")
    return bool(np.median(low) <= AIR and np.median(least) >= -4096)


def _doubt(ct: bool, values: list[bool], low: float) -> str:
    if ct and not all(values):
        return f"These are said to be CT, but percentile 1 is {low:.4g}: cropped to the inside, or not in HU?"
    if not ct and all(values):
        return f"These are not said to be CT, but percentile 1 is {low:.4g}, like air in HU: --modality CT if they are."
    return ""
