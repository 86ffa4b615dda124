"""Files in memory to a zip that has the same bytes whenever and wherever it is written."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scripts.files import replacing

SUMS = "SHA256SUMS"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can name
REGULAR_FILE = 0o100644 << 16
UNIX = 3


def checksums(files: Mapping[str, bytes]) -> bytes:
    """List the SHA-256 sum of each file as ``sha256sum -c`` reads it.

    Args:
        files: path to content.

    Returns:
        One line a file, sorted by path.
    """
    lines = [f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files.items())]
    return "".join(lines).encode()


def pack(files: Mapping[str, bytes], *, compress: bool = True) -> bytes:
    """Zip files: sorted, with one date and one permission for all.

    Args:
        files: path to content.
        compress: False stores them as they are.

    Returns:
        The zip.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in sorted(files.items()):
            entry = zipfile.ZipInfo(path, EPOCH)
            entry.create_system, entry.external_attr = UNIX, REGULAR_FILE
            entry.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            archive.writestr(entry, content)
    return buffer.getvalue()


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Write arrays as ``numpy.load`` reads them; ``numpy.savez`` would write the time of day as well.

    Args:
        arrays: name to array, no objects.

    Returns:
        The npz file.
    """
    files = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        files[f"{name}.npy"] = buffer.getvalue()
    return pack(files, compress=False)


def write_bundle(files: Mapping[str, bytes], name: str, version: str, output: str | Path) -> Path:
    """Write a bundle's files, with their sums, below one top folder of a zip.

    Args:
        files: path inside the bundle to content.
        name: the top folder.
        version: goes into the file's name.
        output: folder for ``<name>_v<version>.zip``.

    Returns:
        The zip.
    """
    content = {**files, SUMS: checksums(files)}
    target = Path(output) / f"{name}_v{version}.zip"
    with replacing(target) as part:
        part.write_bytes(pack({f"{name}/{path}": data for path, data in content.items()}))
    return target
