"""What has to be installed for a bundle: packages its code imports, and those that MONAI needs for what it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from scripts.release.modules import third_party

# MONAI imports these when they are there; without them a command or a component of ours stops
ALWAYS = {
    "torch": "networks",
    "monai": "everything",
    "numpy": "everything",
    "fire": "python -m monai.bundle",
    "jsonschema": "monai.bundle verify_metadata",
    "PyYAML": "configurations",
    "pytorch-ignite": "engines and handlers",
    "nibabel": "NIfTI files",
    "scipy": "components and filters",
    "einops": "networks",
    "tqdm": "progress bars",
}
COMPONENTS = {
    "TensorBoardStatsHandler": "tensorboard",
    "KeepLargestConnectedComponentd": "scikit-image",
    "LoadImaged": "itk",  # DICOM series, NRRD
    "scripts.clinical": "openpyxl",  # clinical tables in xlsx
}


def requirements(sources: Iterable[str], configs: Iterable[str], trained_with: Mapping[str, Any]) -> dict[str, str]:
    """List the packages of a bundle with their versions.

    Args:
        sources: texts of its modules.
        configs: texts of its configurations.
        trained_with: versions of the run; packages that it does not name come with the installed version.

    Returns:
        Package to version, sorted by name.

    Raises:
        ValueError: a package is not installed, so that its version is not known.
    """
    known = packages_distributions()
    names = {known.get(name, [name])[0] for name in third_party(sources)}
    text = "\n".join(configs)
    names |= set(ALWAYS) | {package for component, package in COMPONENTS.items() if component in text}
    found = {}
    for name in sorted(names, key=str.lower):
        pinned = str(trained_with.get(name, "not installed"))
        try:
            found[name] = (version(name) if pinned == "not installed" else pinned).partition("+")[0]
        except PackageNotFoundError as error:
            raise ValueError(f"{name} is not installed, but the bundle needs it. Install it.") from error
    return found


def as_text(pins: Mapping[str, str]) -> str:
    """Write pins as pip reads them."""
    return "".join(f"{name}=={number}\n" for name, number in pins.items())
