"""Checks a submitted label against its image, and brings it to the image's grid and the network's values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import LoadImage
from scripts.clinical_schema import suggestion
from scripts.datalists import NIFTI

TOLERANCE = 1e-3  # mm, per entry of the affine
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+@ =-]{0,199}")


def check_id(name: str, what: str) -> str:
    """Return an id that may become part of a path; ValueError for one that leads elsewhere, or is no plain name."""
    if not isinstance(name, str) or not ID.fullmatch(name) or ".." in name:
        raise ValueError(f"{what} {name!r} is not a plain name of letters, digits and _ . + @ = - (at most 200).")
    return name


def read_label(file: str | Path, image: str | Path, values: Mapping[str, int], info: Mapping[str, Any]) -> Any:
    """Read a label that a client submitted for an image.

    Args:
        file: the label, NIfTI or NRRD.
        image: the image's file, whose grid it must have; other axes of the same grid are turned back.
        values: value by name of the foreground classes; values outside are refused. Empty: any whole number is kept.
        info: the client's parameters; where ``label_info`` lists names with the values that they have in the file
            (``idx``), as 3D Slicer counts its segments, they are translated by name.

    Returns:
        A nibabel image of uint8 (uint16 where values need it), with the image's affine.

    Raises:
        ValueError: an unreadable file, another grid, values that are no class, or an unknown name.
    """
    volume = _read(Path(file))
    reference = nib.load(image)
    volume = _on_grid(volume, reference, Path(image).name)
    voxels = np.asanyarray(volume.dataobj)
    found = np.unique(voxels)
    if not np.array_equal(found, found.round()) or found.min() < 0 or found.max() > 65535:
        raise ValueError(f"The label holds {_listed(found)}; expected whole numbers from 0, one a class.")
    translate = {int(value): int(value) for value in found} | _by_name(info.get("label_info"), values, found)
    allowed = {0, *values.values()}
    if values and (wrong := sorted({value for key, value in translate.items() if key in found} - allowed)):
        names = ", ".join(f"{value}: {name}" for name, value in sorted(values.items(), key=lambda item: item[1]))
        raise ValueError(f"The label holds {wrong[0]}, which is no class. There are 0: background, {names}.")
    if any(key != value for key, value in translate.items()):
        table = np.arange(int(found.max()) + 1)
        for key, value in translate.items():
            if key < len(table):
                table[key] = value
        voxels = table[voxels.astype(np.int64)]
    kind = np.uint8 if voxels.max(initial=0) < 256 else np.uint16
    return nib.Nifti1Image(voxels.astype(kind), reference.affine)


def _read(file: Path) -> nib.Nifti1Image:
    try:
        if file.name.endswith(NIFTI):
            volume = nib.load(file)
            np.asanyarray(volume.dataobj)
            return volume
        loaded = LoadImage(image_only=True, reader="ITKReader")(str(file))
        return nib.Nifti1Image(loaded.array, loaded.affine.numpy())
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"The label cannot be read ({error}). Send NIfTI or NRRD; nothing was saved.") from error


def _on_grid(volume: Any, reference: Any, name: str) -> Any:
    """The label with the image's axes; ValueError where it lies on another grid."""
    if volume.ndim == 4 and volume.shape[-1] == 1:
        volume = volume.slicer[..., 0]
    shape = reference.shape[:3]
    if volume.ndim == 3 and reference.ndim >= 3:
        wanted = nib.io_orientation(reference.affine)
        turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), wanted)
        turned = volume.as_reoriented(turn)
        if turned.shape == shape and np.allclose(turned.affine, reference.affine, atol=TOLERANCE, rtol=0):
            return turned
    raise ValueError(
        f"The label is on another grid than its image {name}: shape {volume.shape}, origin "
        f"{np.round(volume.affine[:3, 3], 2).tolist()}, expected shape {shape}, origin "
        f"{np.round(reference.affine[:3, 3], 2).tolist()} and the same spacing and directions. Resample it to the "
        "image (nearest neighbour); nothing was saved."
    )


def _by_name(listed: Any, values: Mapping[str, int], found: Sequence[float]) -> dict[int, int]:
    """Value in the file -> our value, for the names that a client lists; nothing where it lists none."""
    if not listed or not values or not isinstance(listed, list):
        return {}
    known = {name.lower(): value for name, value in values.items()}
    entries = [entry for entry in listed if isinstance(entry, Mapping) and isinstance(entry.get("idx"), int)]
    numbers = [entry["idx"] for entry in entries]
    if not set(map(int, found)) <= {0, *numbers}:
        # 3D Slicer numbers the segments that it sends from 1, but counts those it leaves out in `idx`
        numbers = list(range(1, len(entries) + 1))
    translate: dict[int, int] = {}
    for number, entry in zip(numbers, entries, strict=True):
        name = str(entry.get("name", ""))
        if name.lower() in known:
            translate[number] = known[name.lower()]
        elif number in found:
            raise ValueError(
                f"The label names a segment {name!r}{suggestion(name, values)}; there are {', '.join(values)}. Rename "
                "or remove it; nothing was saved."
            )
    return translate


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values[:5]) + (" ..." if len(values) > 5 else "")
