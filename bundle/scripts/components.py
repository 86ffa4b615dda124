"""Connected components of label maps: counted, and removed where they are too small to be true."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage


class RemoveSmallComponentsd(MapTransform):
    """Remove components of a class that are smaller than a volume.

    Args:
        keys: label maps ``(1, *spatial)`` whose affine gives the size of a voxel; each is replaced.
        volumes: pairs of label value and smallest volume in ml, > 0; other classes stay as they are.

    Raises:
        ValueError: something else than such pairs.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> mask = MetaTensor(torch.tensor([[[1, 0, 1, 1]]]), affine=torch.diag(torch.tensor([10.0, 10, 10, 1])))
        >>> RemoveSmallComponentsd("pred", volumes=[[1, 1.5]])({"pred": mask})["pred"].tolist()
        [[[0, 0, 1, 1]]]
    """

    def __init__(self, keys: KeysCollection, volumes: Sequence[Sequence[float]], allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        pairs = [tuple(pair) for pair in volumes if isinstance(pair, list | tuple)]
        if len(pairs) < len(volumes) or any(len(pair) != 2 or pair[0] < 1 or not pair[1] > 0 for pair in pairs):
            raise ValueError(f"remove_small is {volumes}; expected pairs of label value and ml, such as [[2, 0.5]].")
        self.volumes = [(int(value), float(ml)) for value, ml in pairs]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with label maps that hold no such component."""
        case = dict(data)
        for key in self.key_iterator(case):
            mask: MetaTensor = case[key].clone()
            array = mask.as_tensor().numpy()[0]  # shares its memory
            voxel = voxel_ml(np.asarray(mask.affine))
            for value, ml in self.volumes:
                part, place = components(array == value)
                small = np.bincount(part.ravel(), minlength=1) * voxel < ml
                small[0] = False
                array[place][small[part]] = 0
            case[key] = mask
        return case


def components(mask: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Number the components of a mask; voxels that touch, if only at a corner, belong together.

    Args:
        mask: bool ``(*spatial)``.

    Returns:
        Numbers from 1, 0 outside, within the box around the mask, and that box, a slice an axis.
    """
    box = ndimage.find_objects(mask.astype(np.uint8))
    place = box[0] if box else (slice(0, 0),) * mask.ndim
    numbers, _ = ndimage.label(mask[place], structure=np.ones((3,) * mask.ndim))
    return numbers, place


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of a voxel in ml, of an affine ``(4, 4)`` in mm; as true as the affine."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000
