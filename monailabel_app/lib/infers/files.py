"""Writes masks and maps for clients, in the geometry of the image."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import nibabel as nib
from monai.data import MetaTensor
from monailabel.transform.writer import Writer
from scripts.datalists import NIFTI

EXTENSIONS = (*NIFTI, ".nrrd")
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")


def write_volume(volume: MetaTensor, request: Mapping[str, Any], dtype: str) -> str:
    """Write a volume to a temporary file.

    Args:
        volume: ``(*spatial)`` with its affine.
        request: the client may ask for another file format and voxel type by ``result_extension`` and
            ``result_dtype``; by default ``.nii.gz``.
        dtype: name of the voxels' type if the client does not care.

    Returns:
        Path of the file.
    """
    wanted = {"result_extension": ".nii.gz", "result_dtype": dtype} | {
        key: value for key, value in request.items() if key.startswith("result_")
    }
    suffix = wanted["result_extension"]
    if suffix in NIFTI:
        return _write_nifti(volume, suffix=suffix, dtype=wanted["result_dtype"])
    file, _ = Writer(label="pred")(wanted | {"pred": volume})
    return file


def _write_nifti(volume: MetaTensor, *, suffix: str, dtype: str) -> str:
    """Write with the affine as it is.

    MONAI Label's own writers change it: one resamples masks whose axes are permuted, the other straightens the slices
    of a tilted gantry.
    """
    handle, file = tempfile.mkstemp(suffix=suffix)
    os.close(handle)
    nib.save(nib.Nifti1Image(volume.array.astype(dtype), volume.affine.numpy()), file)
    return file
