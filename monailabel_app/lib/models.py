"""What a model is made of: a run's folder, a released bundle, or the source bundle with overlays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai.bundle import ConfigParser
from scripts.workflows import overlay_paths

from monailabel_app.lib.released import is_released, verified_copy


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a network comes from.

    ``inference`` are the files that segment, merged in this order; ``training`` those that, over the source bundle's
    own, train it (empty: it cannot be trained); ``weights`` None where there are none yet; ``root`` is set where the
    configuration's ``bundle_root`` must point elsewhere than to the source bundle.
    """

    name: str
    inference: Sequence[Path]
    training: Sequence[Path]
    weights: Path | None
    statistics: Path
    root: Path | None = None


def find_source(name: str, text: str, released: Path) -> Source:
    """Find what ``--conf bundle`` names.

    Args:
        name: name of the model.
        text: a run's folder, a released bundle's folder or zip, or ``<bundle>+<overlay>+<overlay>``.
        released: folder that keeps released bundles once they are verified.

    Returns:
        The source, whose files exist.

    Raises:
        FileNotFoundError: nothing there, or an unfinished run.
        ValueError: an unknown overlay, or a released bundle that `nny verify` refuses.
    """
    first, *overlays = text.split("+")
    folder = Path(first).expanduser().resolve()
    if is_released(folder):
        folder = verified_copy(folder, released)
    if (folder / "configs" / "inference.yaml").is_file():
        return _bundle(name, folder, overlays)
    if overlays:
        raise ValueError(f"{text}: overlays belong to a bundle with configs/inference.yaml, which {folder} has not.")
    return run_source(name, folder)


def run_source(name: str, folder: Path) -> Source:
    """The source that a run's folder is.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    for file in ("inference.yaml", "model.pt"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} is not a finished run: it has no {file}. Train one with `nny train`.")
    config = folder / "config.yaml"
    return Source(
        name=name,
        inference=[folder / "inference.yaml"],
        training=[config if config.is_file() else folder / "inference.yaml"],
        weights=folder / "model.pt",
        statistics=folder / "clinical.json",
    )


def _bundle(name: str, folder: Path, overlays: Sequence[str]) -> Source:
    configs, models = folder / "configs", folder / "models"
    weights = models / "model.pt"
    paths = [Path(path) for path in overlay_paths(list(overlays))]
    if not overlays and not weights.is_file():
        raise FileNotFoundError(
            f"{folder} has no models/model.pt. Give a bundle with weights, or overlays for a network that starts "
            f"without: {folder}+dataset_...+network_..."
        )
    # a released train.yaml is whole; the source bundle's is an overlay on what the training starts from anyway
    train = configs / "train.yaml"
    whole = train.is_file() and "network_def" in ConfigParser.load_config_file(str(train))
    return Source(
        name=name,
        inference=[configs / "inference.yaml", *paths],
        training=[*([train] if whole else []), *paths],
        weights=weights if weights.is_file() else None,
        statistics=models / "clinical.json",
        root=folder,
    )


def read_config(source: Source, clinical: Path | None = None) -> ConfigParser:
    """Read the configuration that segments, its paths pointing to the source's files.

    Args:
        source: the network.
        clinical: the clinical table, or None.

    Returns:
        The configuration, of which nothing is instantiated yet. The table is left out for a network without fusion.
    """
    config = ConfigParser()
    config.read_config([str(file) for file in source.inference])
    if source.root is not None:
        config["bundle_root"] = str(source.root)
    if source.weights is not None:
        config["checkpoint"] = str(source.weights)
    config["clinical_statistics"] = str(source.statistics)
    if clinical is not None and takes_clinical(config):
        config["clinical_table_path"] = str(clinical)
    return config


def takes_clinical(config: ConfigParser) -> bool:
    """Whether the network of a configuration takes clinical variables."""
    return config.get("clinical_schema") is not None
