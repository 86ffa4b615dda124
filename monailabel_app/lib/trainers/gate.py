"""Whether a new version may answer requests: it must not be worse than the served one on held-out patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from monailabel_app.lib.infers.network import Network
from monailabel_app.lib.patients import find_row


def held_out_dice(network: Network, cases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Segment held-out cases as a client would and compare with their labels, on the grid of the images.

    Args:
        network: the version.
        cases: ``image`` and ``label`` paths, ``case_id``, ``patient_id``.

    Returns:
        Per case the mean Dice of the classes that the label or the mask holds, in [0, 1].
    """
    classes = max(network.segmenter.labels.values()) + 1
    scores = {}
    for case in cases:
        mask = network.segmenter(case["image"], clinical=find_row(network.table, case["patient_id"], {}).values).mask
        scores[case["case_id"]] = mean_dice(mask, np.asanyarray(nib.load(case["label"]).dataobj), classes)
    return scores


def mean_dice(mask: np.ndarray, label: np.ndarray, classes: int) -> float:
    """Mean Dice of the foreground classes that occur in either of two label maps of one shape; NaN where none does."""
    found = []
    for value in range(1, classes):
        a, b = mask == value, label == value
        size = int(a.sum()) + int(b.sum())
        if size:
            found.append(2 * int((a & b).sum()) / size)
    return float(np.mean(found)) if found else float("nan")


def verdict(new: Mapping[str, float], served: Mapping[str, float] | None, margin: float) -> dict[str, Any]:
    """Compare two versions on the same cases.

    Args:
        new: Dice by case of the new version.
        served: that of the served one; None where nothing is served yet.
        margin: how much lower the new mean may be.

    Returns:
        ``accepted``, ``reason``, the means ``dice`` and ``served_dice``, and ``cases``.
    """
    score = float(np.mean(list(new.values())))
    before = None if served is None else float(np.mean(list(served.values())))
    accepted = bool(np.isfinite(score)) and (before is None or not score < before - margin)
    if before is None:
        reason = f"Dice {score:.4f} on {len(new)} held-out cases; nothing was served before."
    else:
        word = "not worse" if accepted else "worse"
        reason = (
            f"Dice {score:.4f} on {len(new)} held-out cases is {word} than {before:.4f} of the served version "
            f"(margin {margin:g})."
        )
    cases = {
        name: {"dice": value, "served_dice": None if served is None else served[name]} for name, value in new.items()
    }
    return {
        "accepted": accepted,
        "reason": reason,
        "dice": score,
        "served_dice": before,
        "margin": margin,
        "cases": cases,
    }
