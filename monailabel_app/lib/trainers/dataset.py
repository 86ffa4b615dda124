"""The submitted labels as a dataset folder that the bundle's training reads, split by patient once and for all."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from scripts.files import replacing

from monailabel_app.lib.datastore.archive import ArchiveError
from monailabel_app.lib.patients import patient_of

logger = logging.getLogger(__name__)
HELD_OUT, TRAINING = "held out", "training"


@dataclass(frozen=True)
class Snapshot:
    """The labels as they were when training began: cases (``image``, ``label``, ``case_id``, ``patient_id``) by part,
    and the images whose label is empty, from which nothing can be cropped."""

    training: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    empty: list[str]


def deal(patients: Iterable[str], known: Mapping[str, str], share: float) -> dict[str, str]:
    """Say for each patient whether it trains or is held out; who was dealt stays where it is.

    New patients come in an order that depends on their ids alone, and a patient is held out while fewer than `share`
    of all are; the first one of all is.

    Args:
        patients: ids of the patients with labels, in any order, repeated or not.
        known: part by patient, of earlier deals.
        share: of the patients to hold out, in (0, 1).

    Returns:
        Part by patient: `known` and the new ones.
    """
    parts = dict(known)
    new = sorted(set(patients) - set(parts), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    for patient in new:
        held_out = sum(part == HELD_OUT for part in parts.values())
        parts[patient] = HELD_OUT if held_out < share * (len(parts) + 1) else TRAINING
    return parts


def labelled(datastore: Datastore, known: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The images with a final label: ``image`` and ``label`` paths, ``case_id`` and ``patient_id``.

    One whose image or label cannot be read, such as a segmentation of others on another grid, is left out.

    Args:
        datastore: the studies.
        known: the patients of the clinical table.

    Raises:
        ArchiveError: the archive does not answer.
        OSError: the disk is full.
    """
    cases = []
    for name in sorted(datastore.get_labeled_images()):
        try:
            info = datastore.get_image_info(name)
            label = datastore.get_label_by_image_id(name, DefaultLabelTag.FINAL.value)
            image = datastore.get_image_uri(name)
            mask = datastore.get_label_uri(label, DefaultLabelTag.FINAL.value)
        except (ArchiveError, OSError):
            raise
        except Exception as error:  # whatever the readers make of an object that others wrote
            logger.warning("the label of %s is left out of training: %s", name, error)
            continue
        patient = patient_of(name, info, tuple(known))
        cases.append({"image": image, "label": mask, "case_id": name, "patient_id": patient})
    return cases


def split_patients(cases: Sequence[Mapping[str, Any]], file: Path, share: float, earlier: Path) -> dict[str, str]:
    """Deal the patients of cases, and remember it.

    Args:
        cases: cases of `labelled`.
        file: JSON with the part of each patient, read and replaced.
        share: of the patients to hold out.
        earlier: ``datalist.json`` of the run that the network comes from: its training patients never judge.

    Returns:
        Part by patient.

    Raises:
        ValueError: nobody left to train on, or nobody to judge by.
    """
    known = json.loads(file.read_text()) if file.is_file() else _parts(earlier)
    parts = deal((case["patient_id"] for case in cases), known, share)
    used = {name: {c["patient_id"] for c in cases if parts[c["patient_id"]] == name} for name in (TRAINING, HELD_OUT)}
    if not all(used.values()):
        raise ValueError(
            f"There are labels of {len(used[TRAINING])} patients to train on and of {len(used[HELD_OUT])} held out to "
            "judge by; at least one of each is needed. Label more patients."
        )
    with replacing(file) as part:
        part.write_text(json.dumps(parts, indent=1))
    return parts


def _parts(datalist: Path) -> dict[str, str]:
    if not datalist.is_file():
        return {}
    listed = json.loads(datalist.read_text())
    names = {"validation": HELD_OUT, "training": TRAINING}
    return {case["patient_id"]: part for key, part in names.items() for case in listed.get(key, [])}


def write_snapshot(
    cases: Sequence[Mapping[str, Any]], parts: Mapping[str, str], folder: Path, labels: Sequence[str]
) -> Snapshot:
    """Copy the labels, which clients may replace meanwhile, and write ``dataset.json``; images stay where they are.

    Args:
        cases: cases of `labelled`.
        parts: part by patient.
        folder: the dataset folder, made.
        labels: class names, background first.

    Returns:
        What was written. Held-out cases are fold 0, training cases fold 1.
    """
    (folder / "labelsTr").mkdir(parents=True)
    found = Snapshot([], [], [])
    entries = []
    for case in cases:
        label = folder / "labelsTr" / Path(case["label"]).name
        shutil.copyfile(case["label"], label)
        if not np.asanyarray(nib.load(label).dataobj).any():
            found.empty.append(case["case_id"])
            continue
        held_out = parts[case["patient_id"]] == HELD_OUT
        entry = dict(case) | {"label": str(label), "fold": 0 if held_out else 1}
        (found.held_out if held_out else found.training).append(entry)
        entries.append(entry)
    dataset = {"labels": {str(value): name for value, name in enumerate(labels)}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1))
    return found
