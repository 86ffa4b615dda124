"""MONAI's Spacingd for cases that carry texts, as those of MONAI Label do."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.transforms import Spacingd as MonaiSpacingd


class Spacingd(MonaiSpacingd):
    """Resample to a voxel size, and leave alone the texts beside the images.

    MONAI's class takes every key that starts with ``image_`` for a dictionary of metadata; MONAI Label keeps the file's
    name under ``image_path``. Parameters and results are those of `monai.transforms.Spacingd`.

    Example:
        >>> import torch
        >>> from scripts.spacing import Spacingd
        >>> case = {"image": torch.zeros(1, 4, 4, 4), "image_path": "scan.nii.gz"}
        >>> Spacingd(keys="image", pixdim=(2.0, 2.0, 2.0))(case)["image_path"]
        'scan.nii.gz'
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Return a copy of the case on the new grid."""
        texts = {key: value for key, value in data.items() if isinstance(value, str)}
        return super().__call__({key: value for key, value in data.items() if key not in texts}, lazy) | texts
