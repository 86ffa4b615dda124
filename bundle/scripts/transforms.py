"""Transforms that MONAI does not have: checks, a case's clinical vector, and logits on the grid of the source."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, RandFlipd, SpatialResample, Transform
from monai.utils import convert_to_tensor

if TYPE_CHECKING:
    from scripts.clinical import ClinicalTable


class ClinicalVectord(Transform):
    """Add the clinical vector of a case, found by its patient.

    Args:
        table: the cohort's table; it standardises and marks what is unknown by NaN.
        key: where the vector goes; a mapping ``{column: value}`` that is already there is encoded and wins.
        patient_key: where the patient's id is. A case without one has no known value at all.
    """

    def __init__(self, *, table: ClinicalTable, key: str = "clinical", patient_key: str = "patient_id") -> None:
        self.table, self.key, self.patient_key = table, key, patient_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with a float32 vector ``(F,)``, standardised, NaN where unknown."""
        case = dict(data)
        given = case.get(self.key)
        if isinstance(given, Mapping):
            vector = self.table.encode(given)
        elif case.get(self.patient_key) is not None:
            vector = self.table.vector(case[self.patient_key])
        else:
            vector = np.full(self.table.schema.n_features, np.nan, dtype=np.float32)
        case[self.key] = torch.from_numpy(np.asarray(vector, dtype=np.float32))
        return case


class CheckFinited(MapTransform):
    """Refuse NaN and infinite voxels: one of them makes the logits of a whole window NaN, and its mask empty.

    Args:
        keys: images or labels, any shape; they are passed on as they are.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case; raises ValueError that names the file."""
        case = dict(data)
        for key in self.key_iterator(case):
            count = int((~torch.isfinite(torch.as_tensor(case[key]))).sum())
            if count:
                raise ValueError(
                    f"{_file_of(case[key])}: {count} voxels of '{key}' are NaN or infinite, expected numbers only. "
                    "Replace them, e.g. by the value of air."
                )
        return case


def _file_of(image: Any) -> str:
    """Where an image was read from: a file, the folder of a DICOM series, or that of the first of a list."""
    name = getattr(image, "meta", {}).get("filename_or_obj", "an image of unknown origin")
    return str(name[0]) if isinstance(name, list | tuple) and name else str(name)


class RestoreToSourced(MapTransform):
    """Turn logits on the network's grid into a label map on the grid of the source image.

    Orientation, spacing and cropping are undone in one interpolation of the logits, which gives smoother borders than
    interpolating labels. It works through the source in slabs along its last axis, so full-resolution logits
    never exist: beside the logits on the network's grid it needs ``classes x slab`` slices of float32 and one
    byte a voxel for the result (512 x 512 x 300 with 5 classes: 0.1 GB instead of 1.6 GB and its copies).

    Args:
        keys: logits ``(classes, *spatial)``, or those of several networks as `slabs_on_source` takes them; each is
            replaced by labels ``(1, *source spatial)``, uint8.
        reference: the preprocessed image, whose affine says where the logits lie and whose metadata hold the
            source's affine and shape.
        slab: number of source slices that are interpolated together, >= 1.
        probabilities: also write float16 probabilities ``(classes, *source spatial)`` to ``<key>_probabilities``
            (2 bytes a class and voxel: 0.8 GB for the scan above).
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference: str = "image",
        slab: int = 16,
        probabilities: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if slab < 1:
            raise ValueError(f"slab is {slab}, expected at least 1 slice.")
        self.reference, self.slab, self.probabilities = reference, slab, probabilities

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with label maps in place of logits."""
        case = dict(data)
        image: MetaTensor = case[self.reference]
        affine, shape = source_grid(image)
        meta = {k: v for k, v in image.meta.items() if k not in ("affine", "spatial_shape")} | {"spatial_shape": shape}
        for key in self.key_iterator(case):
            labels = torch.empty((1, *shape), dtype=torch.uint8)
            scores = None
            for place, part in slabs_on_source(case[key], image, self.slab):  # (classes, *, slab)
                labels[..., place] = part.argmax(0, keepdim=True)
                if self.probabilities:
                    scores = torch.empty((len(part), *shape), dtype=torch.float16) if scores is None else scores
                    scores[..., place] = part.softmax(0)
            if "case_id" in case:  # what SaveImaged names its file after
                meta["filename_or_obj"] = f"{case['case_id']}.nii.gz"
            case[key] = MetaTensor(labels, affine=affine, meta=dict(meta))
            if scores is not None:
                case[f"{key}_probabilities"] = MetaTensor(scores, affine=affine, meta=dict(meta))
        return case


def source_grid(image: MetaTensor) -> tuple[torch.Tensor, list[int]]:
    """Affine and shape of the image that a preprocessed image ``(C, *spatial)`` was read from."""
    affine = convert_to_tensor(image.meta["original_affine"], dtype=torch.float64, device="cpu")
    return affine, [int(n) for n in np.asarray(image.meta["spatial_shape"]).ravel()[: image.ndim - 1]]


def slabs_on_source(
    values: torch.Tensor | list[tuple[torch.Tensor, MetaTensor]], image: MetaTensor, slab: int = 16
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Interpolate values on the network's grid linearly on the grid of the source, a few slices at a time.

    Args:
        values: ``(C, *spatial)``; or logits of several networks, each with its image, of which follow the logarithms of
            the mean probabilities, on whichever grids the networks work.
        image: the preprocessed image, which lies where the values do.
        slab: number of source slices that are interpolated together.

    Yields:
        Slices along the source's last axis, and float32 values on them, ``(C, *, slab)``.
    """
    if isinstance(values, list):
        for parts in zip(*(slabs_on_source(*member, slab) for member in values), strict=True):
            logs = [part.log_softmax(0) for _, part in parts]
            yield parts[0][0], torch.stack(logs).logsumexp(0) - math.log(len(logs))
        return
    affine, shape = source_grid(image)
    located = MetaTensor(convert_to_tensor(values, dtype=torch.float32), affine=image.affine)
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float32)
    for start in range(0, shape[-1], slab):
        stop = min(start + slab, shape[-1])
        shifted = affine.clone()
        shifted[:-1, -1] += shifted[:-1, len(shape) - 1] * start
        with torch.no_grad():
            part = resample(located, dst_affine=shifted, spatial_size=[*shape[:-1], stop - start])
        yield slice(start, stop), part.as_tensor().cpu()


def training_transform(preprocessing: Compose, *random: Compose) -> Compose:
    """Put preprocessing and random transforms in one flat list, of which `CacheDataset` caches the first part.

    Args:
        preprocessing: deterministic transforms, nested or not.
        *random: compositions of random transforms, kept as they are (each with its own ``lazy``).

    Returns:
        The composition, deterministic part first.
    """
    return Compose([*preprocessing.flatten().transforms, *random])


def random_flips(keys: KeysCollection, axes: Sequence[int], prob: float = 0.5) -> Compose:
    """Mirror each of some axes independently.

    Args:
        keys: keys of the images and labels to mirror together.
        axes: spatial axes, 0 first; empty for no mirroring.
        prob: probability for each axis.

    Returns:
        One flip an axis.
    """
    return Compose([RandFlipd(keys, prob=prob, spatial_axis=axis) for axis in axes], lazy=True)
