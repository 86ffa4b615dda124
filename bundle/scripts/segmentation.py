"""What segmenting an image gives: a mask, where it lies, how large its parts are, and how sure the network was."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.datalists import NIFTI
from scripts.files import replacing


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """A mask in the geometry of its image.

    Args:
        mask: value of each voxel, uint8 ``(*spatial)``, on the grid of the image; 0 is background.
        affine: voxel to RAS+ world in mm ``(4, 4)``; that of the image.
        labels: name of each class to its value in the mask.
        probabilities: of each class, background first, float16 ``(classes, *spatial)``; None unless asked for.
        uncertainty: entropy of the probabilities over its largest possible value, float32 ``(*spatial)`` from 0 (sure)
            to 1 (every class equally probable); None unless asked for.
        uncertainty_score: mean of that entropy, each voxel weighted by its probability of being foreground: air around
            a patient does not dilute it, and it exists for an empty mask too.
    """

    mask: np.ndarray = field(repr=False)
    affine: np.ndarray = field(repr=False)
    labels: dict[str, int]
    uncertainty_score: float
    probabilities: np.ndarray | None = field(default=None, repr=False)
    uncertainty: np.ndarray | None = field(default=None, repr=False)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of each class in ml; as true as the affine of the image."""
        voxel = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000  # ml
        counts = np.bincount(self.mask.ravel(), minlength=max(self.labels.values()) + 1)
        return {name: int(counts[value]) * voxel for name, value in self.labels.items()}

    def save(self, path: str | Path, what: str = "mask") -> None:
        """Write the mask, or another part of the result, as NIfTI: whole or not at all.

        Args:
            path: file to write, ``.nii`` or ``.nii.gz``.
            what: ``mask``, ``probabilities`` (classes along the last axis) or ``uncertainty``.

        Raises:
            ValueError: another suffix, another part, or one that was not asked for when the image was segmented.
        """
        if not str(path).endswith(NIFTI):
            raise ValueError(f"{path} does not end in {' or '.join(NIFTI)}; masks are written as NIfTI.")
        if what not in ("mask", "probabilities", "uncertainty"):
            raise ValueError(f"There is no part {what!r}; expected mask, probabilities or uncertainty.")
        array = getattr(self, what)
        if array is None:
            raise ValueError(f"{what} was not computed. Segment with {what}=True to have it.")
        if what == "probabilities":
            array = np.moveaxis(array, 0, -1).astype(np.float32)  # NIfTI has no float16
        content = nib.Nifti1Image(array, self.affine).to_bytes()
        with replacing(path) as part:
            part.write_bytes(gzip.compress(content, mtime=0) if str(path).endswith(".gz") else content)
