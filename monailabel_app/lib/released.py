"""Released bundles: verified before anything in them is used; the copy that was verified is kept, and served."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from scripts.verify import verified
from scripts.verify.bundle import refuse
from scripts.verify.sums import SUMS, read_sums, sum_problems

logger = logging.getLogger(__name__)


def is_released(bundle: Path) -> bool:
    """Whether a path is a released bundle: a zip, or a folder that says which files were released."""
    return bundle.suffix == ".zip" or (bundle / SUMS).is_file()


def verified_copy(bundle: Path, home: Path) -> Path:
    """Verify a released bundle as `nny verify` does; the same content is verified once.

    Args:
        bundle: its zip or folder.
        home: folder that keeps the copy, ``<name>-<first digits of its hash>``.

    Returns:
        The folder of the copy.

    Raises:
        FileNotFoundError: there is no such zip.
        ValueError: the bundle, or the kept copy, is not what was released, or cannot be trusted; says why.
    """
    file = bundle / SUMS if bundle.is_dir() else bundle
    if not file.is_file():
        raise FileNotFoundError(f"There is no bundle {bundle}.")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    kept = home / f"{bundle.name.removesuffix('.zip')}-{digest[:12]}"
    if not kept.is_dir():
        logger.info("verifying %s; this is done once", bundle)
        home.mkdir(parents=True, exist_ok=True)
        with verified(bundle, parent=home, sha256=digest) as folder:
            folder.rename(kept)
    refuse(kept, "the verified copy was changed; remove it", sum_problems(kept, read_sums(kept)[0]))
    return kept
