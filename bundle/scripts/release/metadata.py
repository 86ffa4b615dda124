"""``metadata.json`` of a bundle, filled from the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from scripts.release.facts import UNKNOWN, Facts

SEMANTIC = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?")
NOT_A_DEVICE = "Research only; not a medical device"


def metadata(
    facts: Facts,
    *,
    title: str,
    version: str,
    changelog: Mapping[str, str],
    pins: Mapping[str, str],
    said: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a bundle as MONAI's specification asks, and as far as the run is known.

    Args:
        facts: of the run.
        title: name for people.
        version: of the bundle, three numbers.
        changelog: version to what changed.
        pins: packages that the bundle needs.
        said: what the user said of it: ``intended_use``, ``data_source``, ``data_licence``, ``authors``.

    Returns:
        The content of ``metadata.json``.
    """
    source, base = facts.source, ("torch", "monai", "numpy")
    authors = said.get("authors") or source["authors"]
    return {
        "schema": source["schema"],
        "version": version,
        "changelog": dict(changelog),
        "monai_version": pins["monai"],
        "pytorch_version": pins["torch"],
        "numpy_version": pins["numpy"],
        "required_packages_version": {name: number for name, number in pins.items() if name not in base},
        "supported_apps": {"nny": source["version"]},
        "name": title,
        "task": source["task"] if facts.own_task else f"Segmentation of {_listed(facts.labels[1:])}",
        "description": description(facts),
        "authors": authors,
        "copyright": f"Copyright (c) {authors}",
        "data_source": data_source(facts, said),
        "data_licence": data_licence(facts, said),
        "data_type": "nifti, dicom",
        "image_classes": f"{_channels(facts)}, {_range_text(facts)}",
        "label_classes": ", ".join(f"{value} {name}" for value, name in enumerate(facts.labels)),
        "pred_classes": f"{len(facts.labels)} channels of logits, one for each class",
        "eval_metrics": scores(facts),
        "intended_use": said.get("intended_use") or _intended_use(facts),
        "references": source["references"],
        "network_data_format": {"inputs": _inputs(facts), "outputs": {"pred": _output(facts)}},
    }


def check_version(version: str, changelog: Mapping[str, str]) -> None:
    """Refuse a version that is not three numbers, or of which the changelog says nothing.

    Args:
        version: of the bundle.
        changelog: version to what changed.

    Raises:
        ValueError: saying what is wrong.
    """
    if not SEMANTIC.fullmatch(version):
        raise ValueError(f"The version is {version!r}, expected three numbers such as 1.0.0 (--version).")
    if version not in changelog:
        raise ValueError(f"The changelog has {', '.join(changelog)}, but not version {version} (--changelog).")


def description(facts: Facts) -> str:
    """One sentence: encoder, decoder and fusion."""
    network = facts.network
    parts = f"{_class(network.encoder)} and {_class(network.decoder)}"
    fusion = "image only" if facts.schema is None else f"clinical variables enter through {_class(network.fusion)}"
    return f"Segmentation network of {parts}; {fusion}."


def data_source(facts: Facts, said: Mapping[str, Any]) -> str:
    """Where the training data come from: what the user says, else the dataset, else that it is not known."""
    about = ", ".join(filter(None, (facts.dataset.get("name"), facts.dataset.get("description"))))
    references = facts.dataset.get("reference")
    known = f"{about} ({references})" if about and references else about
    return said.get("data_source") or known or facts.provenance.get("what") or UNKNOWN


def data_licence(facts: Facts, said: Mapping[str, Any]) -> str:
    """Licence of the training data, in the same order."""
    stated = facts.dataset.get("licence") or facts.dataset.get("license") or facts.provenance.get("licence")
    return said.get("data_licence") or stated or UNKNOWN


def scores(facts: Facts) -> dict[str, Any]:
    """Means over the held-out cases; of weights without their run, the Dice that came with them."""
    total, classes = facts.summary.get("total", {}), facts.summary.get("classes", {})
    if not total.get("dice"):
        dice = dict(facts.provenance.get("held_out_dice", {}))
        mean = {"mean_dice": dice.pop("total")} if "total" in dice else {}
        return mean | ({"dice": dice} if dice else {})
    found = {f"mean_{name}": _rounded(total[name]["mean"]) for name in ("dice", "iou", "hd95") if total.get(name)}
    per_class = {name: _rounded(values["dice"]["mean"]) for name, values in classes.items() if values.get("dice")}
    return found | {"cases": total["dice"].get("n"), "dice": per_class}


def _intended_use(facts: Facts) -> str:
    excluded = facts.provenance.get("not_for")
    return f"{NOT_A_DEVICE}. Not for: {excluded}" if excluded else NOT_A_DEVICE


def _inputs(facts: Facts) -> dict[str, Any]:
    image = {
        "type": "image",
        "format": "hounsfield" if _modality(facts) == "CT" else "magnitude",
        "modality": _modality(facts),
        "num_channels": facts.in_channels,
        "spatial_shape": facts.shape,
        "dtype": "float32",
        "value_range": _value_range(facts),
        "is_patch_data": True,
        "patch_size": facts.patch,
        "channel_def": {str(n): "image" if facts.in_channels == 1 else f"image {n}" for n in range(facts.in_channels)},
    }
    return {"image": image} if facts.schema is None else {"image": image, "clinical": _clinical(facts)}


def _clinical(facts: Facts) -> dict[str, Any]:
    """The clinical vector, which may be left out: every variable is then unknown."""
    columns = [
        {key: value for key, value in _column(column).items() if value not in ("", [], None)}
        for column in facts.schema.columns
    ]
    return {
        "type": "tuples",
        "format": "clinical",
        "modality": "n/a",
        "num_channels": facts.schema.n_features,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(n): name for n, name in enumerate(facts.schema.feature_names)},
        "optional": True,
        "unknown_value": "NaN",
        "standardised_by": "models/clinical.json",
        "columns": columns,
    }


def _column(column: Any) -> dict[str, Any]:
    return {
        "name": column.name,
        "kind": column.kind,
        "unit": column.unit,
        "categories": [str(category) for category in column.categories],
        "known": column.known,
        "description": column.description,
    }


def _output(facts: Facts) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "segmentation",
        "modality": "n/a",
        "num_channels": len(facts.labels),
        "spatial_shape": facts.shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(value): name for value, name in enumerate(facts.labels)},
    }


def _modality(facts: Facts) -> str:
    stated = facts.dataset.get("modality")
    if isinstance(stated, Mapping) and stated:
        return str(next(iter(stated.values())))
    own = facts.source["network_data_format"]["inputs"]["image"]["modality"]
    return str(stated) if stated else own if facts.own_task else "n/a"


def _value_range(facts: Facts) -> list[float]:
    intensity = facts.configs["inference"].get("intensity", {})
    clipped = isinstance(intensity, Mapping) and intensity.get("clip") and "b_min" in intensity
    return [intensity["b_min"], intensity["b_max"]] if clipped else []


def _range_text(facts: Facts) -> str:
    limits = _value_range(facts)
    return f"scaled to [{limits[0]:g}, {limits[1]:g}]" if limits else "normalised"


def _channels(facts: Facts) -> str:
    what = f"{_modality(facts)} image" if _modality(facts) != "n/a" else "image"
    return f"{what} of {facts.in_channels} channel{'s' * (facts.in_channels > 1)}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _class(part: Any) -> str:
    return type(part).__name__


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
