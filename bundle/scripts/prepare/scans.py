"""One case of a download: the files it is made of, read onto one grid, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.datalists import NIFTI
from scripts.dicom import CaseError

GRID_TOLERANCE = 0.1  # voxels by which two files' grids may differ at their corners
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class SourceCase:
    """Where a case of a download lies.

    Args:
        case_id: name of the case.
        patient_id: whose scan it is.
        images: one file a channel, or one file with them all.
        label: the label map's file.
        group: vendor, site, pathology, … for tables per group.
        fold: where a published split says it; None: dealt by patient.
        frame: which frame of 4D files, from 0.
        problem: why the case cannot be used, found while looking through the download.
    """

    case_id: str
    patient_id: str
    images: tuple[str, ...]
    label: str
    group: str = ""
    fold: int | None = None
    frame: int | None = None
    problem: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it is made of."""
        return (*self.images, *filter(None, [self.label]))


@dataclass(frozen=True)
class Scan:
    """A case in memory: image (X, Y, Z[, C]), label uint8 (X, Y, Z), 4x4 affine to RAS millimetres, and doubts."""

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    warnings: list[str] = field(default_factory=list)


def read_case(case: SourceCase, values: Mapping[int, int], channels: int = 1) -> Scan:
    """Reads and checks a case of image files; nothing is resampled or turned.

    Args:
        case: its files.
        values: value in the label file -> value to write.
        channels: channels that the image must have.

    Returns:
        Scan: int16 where the values allow it without loss, else float32.

    Raises:
        CaseError: what is wrong, with the file.
    """
    if case.problem:
        raise CaseError(case.problem)
    volumes = [load_volume(path, case.frame) for path in case.images]
    first, affine = volumes[0]
    for path, (array, other) in zip(case.images[1:], volumes[1:], strict=True):
        check_grid(path, array.shape, other, case.images[0], first.shape, affine)
    image = first if len(volumes) == 1 else np.stack([array for array, _ in volumes], axis=-1)  # (X, Y, Z, C)
    if image.ndim == 4 and image.shape[3] == 1:
        image = image[..., 0]
    found = image.shape[3] if image.ndim == 4 else 1
    if image.ndim not in (3, 4) or found != channels:
        raise CaseError(
            f"{case.images[0]} has the shape {image.shape}; expected a volume (X, Y, Z) with {channels} channel(s)"
        )
    label, label_affine = load_volume(case.label, case.frame)
    label = label[..., 0] if label.ndim == 4 and label.shape[3] == 1 else label
    check_grid(case.label, label.shape, label_affine, case.images[0], image.shape[:3], affine)
    return Scan(_compact(image, case.images[0]), map_label(label, values, case.label), affine, _doubts(affine))


def load_volume(path: str, frame: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads NIfTI, NRRD, MetaImage, … as stored.

    Args:
        path: the file.
        frame: of a 4D file, from 0; None reads everything.

    Returns:
        tuple: array (X, Y, Z[, …]) and 4x4 affine to RAS millimetres.

    Raises:
        CaseError: no such file, not readable, or fewer frames.
    """
    if not Path(path).is_file():
        raise CaseError(f"{path} does not exist; download or unpack it again")
    try:
        if path.endswith(NIFTI):
            file = nib.load(path)
            if frame is not None and (file.ndim != 4 or not 0 <= frame < file.shape[3]):
                raise CaseError(f"{path} has the shape {file.shape}; expected a 4D file with a frame {frame} (from 0)")
            array = np.asanyarray(file.dataobj if frame is None else file.dataobj[..., frame])
            affine = file.affine
        else:
            from monai.transforms import LoadImage  # here, as it brings torch, which nothing else in prepare needs

            image = LoadImage(reader="ITKReader", image_only=True)(path)
            array, affine = np.asarray(image), np.asarray(image.affine)
    except CaseError:
        raise
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise CaseError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}); download it again"
        ) from error
    if array.dtype.kind not in "iubf" or array.ndim < 3:
        raise CaseError(f"{path} holds {array.dtype} of shape {array.shape}; expected the numbers of a volume")
    return array, np.asarray(affine, float)


def check_grid(
    path: str,
    shape: tuple[int, ...],
    affine: np.ndarray,
    reference: str,
    reference_shape: tuple[int, ...],
    reference_affine: np.ndarray,
) -> None:
    """Raises CaseError unless two files lie on one grid, as voxel will be compared with voxel."""
    if tuple(shape) != tuple(reference_shape):
        raise CaseError(
            f"{path} has the shape {tuple(shape)}, but {reference} has {tuple(reference_shape)}; resample it"
        )
    corners = np.array([(*c, 1) for c in product(*([0, n - 1] for n in shape[:3]))]).T  # (4, 8)
    apart = np.linalg.norm(((affine - reference_affine) @ corners)[:3], axis=0).max()
    size = nib.affines.voxel_sizes(reference_affine).min()
    if not apart <= GRID_TOLERANCE * size:
        raise CaseError(
            f"{path} lies up to {apart:.2f} mm away from {reference} (origins {_origin(affine)} and "
            f"{_origin(reference_affine)}, axes {_axes(affine)} and {_axes(reference_affine)}); resample it "
            "or correct its header"
        )


def map_label(label: np.ndarray, values: Mapping[int, int], path: str) -> np.ndarray:
    """Turns the values of a label file into ours.

    Args:
        label: (X, Y, Z) as stored.
        values: value in the file -> value to write.
        path: the file, for messages.

    Returns:
        np.ndarray: uint8 (X, Y, Z).

    Raises:
        CaseError: values that are not expected, or no foreground.
    """
    result = np.zeros(label.shape, np.uint8)
    for value in np.unique(label):
        if value not in values:
            raise CaseError(f"{path} holds the value {value:g}; expected {', '.join(map(str, sorted(values)))}")
        result[label == value] = values[int(value)]
    if not result.any():
        raise CaseError(f"{path} marks no voxel of any class")
    return result


def _compact(image: np.ndarray, path: str) -> np.ndarray:
    """The image as int16 if that loses nothing, else as float32."""
    wrong = int((~np.isfinite(image)).sum()) if image.dtype.kind == "f" else 0
    if wrong:
        raise CaseError(f"{path}: {wrong} voxels are NaN or infinite; replace them, e.g. by the value of air")
    whole = image.dtype.kind != "f" or np.array_equal(image, np.rint(image))
    if whole and image.min() >= _INT16.min and image.max() <= _INT16.max:
        return image.astype(np.int16)
    return image.astype(np.float32)


def _doubts(affine: np.ndarray) -> list[str]:
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine <= 1e-3:
        return []
    return [f"the axes are not perpendicular (cosine {cosine:.3f}); ITK and Slicer may refuse the file"]


def _origin(affine: np.ndarray) -> list[float]:
    return np.round(affine[:3, 3], 1).tolist()


def _axes(affine: np.ndarray) -> str:
    return "".join(str(code) for code in nib.aff2axcodes(affine))
