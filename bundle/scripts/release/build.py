"""`nny release`: a finished run becomes one zip that MONAI's own tools take as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from scripts import BUNDLE_ROOT
from scripts.release import requirements
from scripts.release.archive import write_bundle
from scripts.release.card import card, render
from scripts.release.configs import CONFIGS, as_yaml, file_as_released, named_files
from scripts.release.facts import UNKNOWN, Facts, read_facts
from scripts.release.metadata import check_version, metadata
from scripts.release.modules import needed_modules
from scripts.release.weights import check_case, state_dict, torchscript

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
TREE = BUNDLE_ROOT
PYTHON = "scripts.segment"  # the way into a bundle from Python, beside MONAI's commands


def release(
    run: str,
    output: str = "dist",
    name: str | None = None,
    version: str | None = None,
    changelog: str | Mapping[str, str] = "First release",
    title: str | None = None,
    intended_use: str | None = None,
    data_source: str | None = None,
    data_licence: str | None = None,
    authors: str | None = None,
) -> str:
    """Pack a finished run as a MONAI Bundle: <output>/<name>_v<version>.zip. The same run gives the same bytes.

    Example: nny release --run ~/runs/first --output dist --name liver_ct_segmentation --version 1.0.0

    Args:
        run: the run's folder, best after `nny evaluate`, whose scores go into the model card.
        output: folder for the zip.
        name: of the bundle, letters, digits and underscores; by default the run's folder. It should say task and data.
        version: three numbers; by default that of this repository.
        changelog: what changed in this version, or a dict of version to text that holds it.
        title: name for people; by default `name` with spaces.
        intended_use: what the bundle is for, and not for.
        data_source: where the training data come from; by default what their dataset.json says.
        data_licence: licence of the training data, in the same way.
        authors: who made it.

    Returns:
        Path of the zip.

    Raises:
        FileNotFoundError: no finished run there.
        ValueError: weights that do not fit, paths of this machine in the configuration, a bad name or version.
    """
    facts = read_facts(run)
    name = name or re.sub(r"\W+", "_", facts.run.name, flags=re.ASCII)
    if not NAME.fullmatch(name):
        raise ValueError(f"The name is {name!r}; expected letters, digits and underscores, a letter first (--name).")
    version = str(version or facts.source["version"])
    changelog = {version: changelog} if isinstance(changelog, str) else {str(k): str(v) for k, v in changelog.items()}
    check_version(version, changelog)
    said = {
        "intended_use": intended_use, "data_source": data_source, "data_licence": data_licence, "authors": authors,
    }  # fmt: skip
    files = _configurations(facts) | _code(facts)
    pins = requirements.requirements(_texts(files, "scripts/"), _texts(files, "configs/"), facts.versions)
    meta = metadata(
        facts, title=title or name.replace("_", " "), version=version, changelog=changelog, pins=pins, said=said
    )
    files |= _weights(facts, meta) | card(facts, meta, name)
    licence = {"source": meta["data_source"], "licence": meta["data_licence"], "unknown": UNKNOWN}
    data_license = render("data_license.txt", licence).encode()
    files |= {
        "configs/metadata.json": (json.dumps(meta, indent=2) + "\n").encode(),
        "docs/schema.json": (TREE / "docs" / "schema.json").read_bytes(),
        "docs/data_license.txt": data_license,  # where model-zoo wants it
        "data_license.txt": data_license,
        "requirements.txt": requirements.as_text(pins).encode(),
        "LICENSE": (TREE / "LICENSE").read_bytes(),
    }
    target = write_bundle(files, name, version, output)
    size = target.stat().st_size / 2**20
    print(f"{target}: {len(files) + 1} files, {size:.1f} MiB. Check it with `nny verify {target}`.")
    return str(target)


def _configurations(facts: Facts) -> dict[str, bytes]:
    """Flat configurations, overlays that run exported forms, and the files that they read."""
    files = {f"configs/{name}.yaml": as_yaml(config, name).encode() for name, config in facts.configs.items()}
    copied = [path.name for path in sorted(CONFIGS.glob("inference_*.yaml"))] + ["logging.conf"]
    return files | {f"configs/{name}": file_as_released(name) for name in copied + named_files(facts.configs)}


def _code(facts: Facts) -> dict[str, bytes]:
    """The modules that the configurations reach."""
    texts = [as_yaml(config, name) for name, config in facts.configs.items()]
    texts += [path.read_text(encoding="utf-8") for path in sorted(CONFIGS.glob("inference_*.yaml"))]
    return {path: text.encode() for path, text in needed_modules(texts, TREE, [PYTHON]).items()}


def _weights(facts: Facts, meta: Mapping[str, Any]) -> dict[str, bytes]:
    files = {
        "models/model.pt": state_dict(facts),
        "models/model.ts": torchscript(facts, meta),
        "models/check.npz": check_case(facts),
    }
    if facts.schema is not None:
        files["models/clinical.json"] = (facts.run / "clinical.json").read_bytes()
    return files


def _texts(files: Mapping[str, bytes], folder: str) -> list[str]:
    return [content.decode() for path, content in files.items() if path.startswith(folder)]
