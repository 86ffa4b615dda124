"""Datasets and fingerprints whose plan is known."""

import json
from pathlib import Path

import numpy as np
from scripts.plan.fingerprint import Fingerprint
from scripts.plan.measure import class_facts, grey_values, nonzero_share
from support import write_nifti


def two_balls(shape, centres, radius=3.0):
    """A label map with a ball of each class: ``{value: [centre, …]}``."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    label = np.zeros(shape, np.uint8)
    for value, places in centres.items():
        for place in places:
            label[((grid - np.array(place)[:, None, None, None]) ** 2).sum(0) < radius**2] = value
    return label


def record(image, label, spacing=(1.0, 1.0, 1.0), classes=2, coded=True):
    """What would be measured of an image (X, Y, Z[, C])."""
    channels = image.reshape(*image.shape[:3], -1).astype(np.float32)
    return {
        "case_id": "case",
        "key": "",
        "shape": list(label.shape),
        "spacing": list(spacing),
        "coded": coded,
        "box": nonzero_share(channels),
        "channels": [grey_values(channels[..., c], label) for c in range(channels.shape[3])],
        "classes": class_facts(label.astype(np.int32), classes, spacing),
    }


def geometry(shape, spacing, coded=True):
    """A record of which only the geometry counts."""
    blank = {"min": 0.0, "max": 1.0, "levels": [0, 0, 0.5, 1], "mean": 0.5, "std": 0.2, "foreground": [0.5]}
    blank |= {"clipped": [0.5, 0.2], "border": 0.0}
    return {"shape": list(shape), "spacing": list(spacing), "coded": coded, "box": 1.0, "channels": [blank]} | {
        "classes": {}
    }


def fingerprint_of(records, labels=("background", "ball"), channels=("MR",)):
    """The fingerprint that these records make."""
    return Fingerprint(
        "made", Path("/data/made"), 0, 1, tuple(labels), tuple(channels), {}, tuple(records), tuple(records)
    )


def write_dataset(folder, volumes, *, spacing=(1.0, 1.0, 1.0), labels=("background", "ball"), channels=("MR",), **more):
    """A prepared dataset of (image, label) pairs, dealt to five folds in turn; images may have channels last."""
    cases = []
    for i, (image, label) in enumerate(volumes):
        affine = np.diag([*spacing, 1.0])
        for sub, array in (("imagesTr", image), ("labelsTr", label)):
            write_nifti(folder / sub / f"case_{i:02d}.nii.gz", array, affine)
        name = f"case_{i:02d}.nii.gz"
        cases.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}", "fold": i % 5})
    named = {str(value): name for value, name in enumerate(labels)}
    modality = {str(i): name for i, name in enumerate(channels)}
    about = {"name": "made", "labels": named, "modality": modality, "training": cases} | more
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder
