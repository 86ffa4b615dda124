"""Which segmentation of the archive labels which image, remembered so that each is asked for once."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from scripts.files import replacing

from monailabel_app.lib.datastore.archive import Archive, ArchiveError, Seg
from monailabel_app.lib.datastore.dicom_codes import value_of

logger = logging.getLogger(__name__)
FINAL = DefaultLabelTag.FINAL.value


class SegIndex:
    """What the segmentations of an archive say of themselves; one that is stored there never changes.

    Args:
        file: where it is kept; one that is damaged is written anew.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def newest(self, archive: Archive, values: Mapping[str, int]) -> dict[str, Seg]:
        """The newest segmentation of each image that has one.

        Args:
            archive: the archive.
            values: value by name of our classes; a segmentation that has none of them labels nothing.
        """
        found: dict[str, Seg] = {}
        for seg in sorted(self._all(archive).values(), key=lambda seg: seg.made):
            if not seg.automatic and any(value_of(names, values) is not None for names in seg.names):
                found[seg.image] = seg
        return found

    def _all(self, archive: Archive) -> dict[str, Seg]:
        known = self._read()
        present = archive.segs()
        found = {uid: known[uid] if uid in known else _ask(archive, study, uid) for uid, study in present.items()}
        if found.keys() != known.keys():
            with FileLock(f"{self._file}.lock"), replacing(self._file) as part:
                part.write_text(json.dumps({uid: vars(seg) for uid, seg in found.items()}))
        return found

    def _read(self) -> dict[str, Seg]:
        try:
            stored = json.loads(self._file.read_text()) if self._file.is_file() else {}
            return {uid: Seg(**{**entry, "names": tuple(map(tuple, entry["names"]))}) for uid, entry in stored.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s cannot be read (%s); the archive is asked again", self._file, error)
            return {}


def _ask(archive: Archive, study: str, uid: str) -> Seg:
    """What a segmentation says of itself; one that cannot be understood labels nothing."""
    try:
        return archive.seg(study, uid)
    except ArchiveError:
        raise
    except Exception as error:  # whatever a damaged object makes the reader raise
        logger.warning("the segmentation series %s cannot be read (%s); it is not counted", uid, error)
        return Seg(uid, study, "", (), "", automatic=False)


def listed(
    uid: str, info: Mapping[str, Any], seg: Seg | None, old: ImageLabelModel | None, begin: int
) -> ImageLabelModel:
    """An image as the archive has it; what was known of it is kept.

    Args:
        uid: its SeriesInstanceUID.
        info: what the archive says of it.
        seg: the segmentation that counts; None: it is not labelled.
        old: what was known.
        begin: when the archive was asked, in seconds since 1970; a label that was saved since is newer than its answer.
    """
    name = {"ts": int(time.time()), "name": f"{uid}.nii.gz"}
    labels = dict(old.labels) if old else {}
    final = labels.pop(FINAL, None)
    if final is not None and final.info.get("ts", 0) >= begin:
        labels[FINAL] = final
    elif seg is not None:
        said = final.info if final and final.info.get("SeriesInstanceUID") == seg.uid else {}
        told = {**name, "ts": 0, **said, "SeriesInstanceUID": seg.uid, "StudyInstanceUID": seg.study}
        labels[FINAL] = DataModel(info=told, ext=".nii.gz")
    image = DataModel(info={**(old.image.info if old else name), **info}, ext=".nii.gz")
    return ImageLabelModel(image=image, labels=labels)
