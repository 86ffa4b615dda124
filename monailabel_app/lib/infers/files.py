"""Writes masks and maps for clients, in the geometry of the image."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monailabel.transform.writer import Writer
from scripts.datalists import NIFTI

EXTENSIONS = (*NIFTI, ".nrrd")
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")


def write_volume(volume: np.ndarray, affine: np.ndarray, request: Mapping[str, Any]) -> str:
    """Write a volume to a temporary file.

    Args:
        volume: ``(*spatial)``.
        affine: voxel to RAS+ world in mm ``(4, 4)``.
        request: the client may ask for another file format and voxel type by ``result_extension`` and
            ``result_dtype``; by default ``.nii.gz`` of the type that the volume has.

    Returns:
        Path of the file.
    """
    wanted = {"result_extension": ".nii.gz", "result_dtype": volume.dtype.name}
    wanted |= {key: value for key, value in request.items() if key.startswith("result_")}
    suffix = wanted["result_extension"]
    if suffix in NIFTI:
        return _write_nifti(volume.astype(wanted["result_dtype"], copy=False), affine, suffix)
    file, _ = Writer(label="pred")(wanted | {"pred": MetaTensor(volume, affine=affine)})
    return file


def _write_nifti(volume: np.ndarray, affine: np.ndarray, suffix: str) -> str:
    """Write with the affine as it is.

    MONAI Label's own writers change it: one resamples masks whose axes are permuted, the other straightens the slices
    of a tilted gantry.
    """
    handle, file = tempfile.mkstemp(suffix=suffix)
    os.close(handle)
    try:
        nib.save(nib.Nifti1Image(volume, affine), file)
    except BaseException:  # a full disk
        os.unlink(file)
        raise
    return file
