"""A DICOM archive as MONAI Label's datastore: scans come from it, labels go to it as segmentation objects."""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from filelock import FileLock
from monailabel.datastore.local import DataModel
from monailabel.interfaces.exception import ImageNotFoundException
from pydicom.dataset import Dataset
from scripts.files import replacing

from monailabel_app.lib.datastore.archive import COUNT, Archive, ArchiveError, made
from monailabel_app.lib.datastore.dicom_index import FINAL, SegIndex, listed
from monailabel_app.lib.datastore.dicom_seg import Origin, read_image, read_seg, write_seg
from monailabel_app.lib.datastore.labels import read_label
from monailabel_app.lib.datastore.local import StudyFolder, check_tag, compressed

logger = logging.getLogger(__name__)
EVERY = 2.0  # seconds between two looks into the archive
SHARE = 20  # and this many times as long as a look takes
WAIT = 0.05  # seconds that a request waits for a look


class DicomStudies(StudyFolder):
    """Images are the series of a DICOM archive, by SeriesInstanceUID; final labels are its segmentation series.

    The archive is the truth: a segmentation that anyone stored there labels its image, the newest one of an image
    counts, and one that is deleted there is gone. The folder is a cache that can be deleted: ``dicom/<uid>/`` and
    ``<uid>.nii.gz`` for scans, ``labels/`` for labels, ``segmentations.json`` for what the archive's segmentations say.

    Args:
        archive: the archive.
        folder: the cache.
        values: gives value by name of the classes that a label may hold.
        replaced: folder that keeps the labels which a later one replaced.
        origin: gives the model and version that a submitted label started from.

    Raises:
        ValueError: the archive does not answer as one.
    """

    def __init__(
        self,
        archive: Archive,
        folder: Path,
        *,
        values: Callable[[], Mapping[str, int]],
        replaced: Path,
        origin: Callable[[], tuple[str, str]],
    ) -> None:
        self.archive, self._origin = archive, origin
        self._index = SegIndex(folder / "segmentations.json")
        self._asking, self._due, self._looked = threading.Lock(), 0.0, False
        self._counted: dict[str, str] = {}  # number of an image's slices, as the archive said when it was fetched
        folder.mkdir(parents=True, exist_ok=True)
        try:
            super().__init__(str(folder), values=values, replaced=replaced, watch=False)
        except ArchiveError as error:
            raise ValueError(
                f"{error} Start it, or give its DICOMweb address by --studies; MONAI_LABEL_DICOMWEB_USERNAME and "
                "MONAI_LABEL_DICOMWEB_PASSWORD log in."
            ) from error

    def name(self) -> str:
        """The archive's address."""
        return self.archive.url

    def list_images(self) -> list[str]:
        """The series that can be labelled."""
        self._look()
        return super().list_images()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The series that a segmentation of ours, or of anyone with our classes, refers to; each once."""
        self._look()
        return super().get_labeled_images(label_tag, labels)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The others."""
        self._look()
        return super().get_unlabeled_images(label_tag, labels)

    def series(self, image_id: str) -> Path:
        """Folder with the DICOM files of an image, fetched when it is not there or the archive has others by now."""
        self._look()
        info = self._entry(image_id).image.info
        folder = self._cache / "dicom" / image_id
        with self._fetching(image_id):
            if not self._is_whole(folder, info.get(COUNT, "")):
                for place in (self._cache, Path(self._datastore.label_path(FINAL))):  # made of what was there before
                    (place / f"{image_id}.nii.gz").unlink(missing_ok=True)
                self.archive.download(info["StudyInstanceUID"], image_id, folder)
                self._counted[image_id] = info.get(COUNT, "")
        return folder

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image as NIfTI, fetched and converted when it is not there; empty for one that is not known."""
        self._look()
        if image_id not in self._datastore.objects:
            return ""
        file = self._cache / f"{image_id}.nii.gz"
        folder = self.series(image_id)
        with self._fetching(image_id):
            if not file.is_file():
                volume = read_image(folder)
                with replacing(file) as part:
                    part.write_bytes(compressed(volume))
        return str(file)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a label as NIfTI on the full grid of its image; empty where there is none."""
        self._look()
        entry = self._datastore.objects.get(label_id)
        label = entry.labels.get(label_tag) if entry else None
        if label is None:
            return ""
        file = Path(self._datastore.label_path(label_tag)) / f"{label_id}{label.ext}"
        if label_tag != FINAL:
            return str(file)
        image, series, uid = self.get_image_uri(label_id), self.series(label_id), label.info["SeriesInstanceUID"]
        with self._fetching(label_id):
            if not (file.is_file() and _marked(file) == uid):
                folder = self.archive.download(label.info["StudyInstanceUID"], uid, self._cache / "dicom" / uid)
                volume = read_seg(_newest(folder), series, nib.load(image), self._values())
                _mark(volume, uid)
                with replacing(file) as part:
                    part.write_bytes(compressed(volume))
                shutil.rmtree(folder)
        return str(file)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label and send it to the archive as a segmentation, whole or not at all.

        One of the tag ``original`` is a network's mask that nobody corrected, and labels nothing.

        Raises:
            ImageNotFoundException: no such image.
            ValueError: an unknown tag, or a label that `read_label` refuses.
            OSError: the disk is full; nothing has changed.
            ArchiveError: the archive does not answer, or refuses; nothing has changed.
        """
        tag = check_tag(label_tag)
        self._look()
        if image_id not in self._datastore.objects:
            raise ImageNotFoundException(f"There is no image {image_id!r} in {self.archive.url}.")
        info = dict(label_info or {})
        volume = read_label(label_filename, self.get_image_uri(image_id), self._values(), info)
        file = Path(self._datastore.label_path(tag)) / f"{image_id}.nii.gz"
        seg = self.encode(image_id, np.asanyarray(volume.dataobj), info, corrected=tag == FINAL)
        info |= {"SeriesInstanceUID": str(seg.SeriesInstanceUID), "StudyInstanceUID": str(seg.StudyInstanceUID)}
        _mark(volume, info["SeriesInstanceUID"])
        with self._fetching(image_id), replacing(file) as part:
            part.write_bytes(compressed(volume))
            self.archive.store(seg)
        info |= {"ts": int(time.time()), "name": file.name}
        with self._changing():
            old = self._entry(image_id)
            self._put(image_id, old.image, {**old.labels, tag: DataModel(info=info, ext=".nii.gz")})
        self.look_again()
        return image_id

    def encode(self, image_id: str, label: np.ndarray, info: Mapping[str, Any], *, corrected: bool) -> Dataset:
        """A label map of an image as a DICOM segmentation.

        Args:
            image_id: the image.
            label: (columns, rows, slices) on the image's grid.
            info: the client's parameters: ``model`` and, in ``params``, ``version`` and ``label_names`` say which mask
                it is or started from, by default the served one's; ``label_info`` which names it has.
            corrected: whether a person answers for it.
        """
        told = info.get("params") if isinstance(info.get("params"), Mapping) else {}
        model, version = self._origin()
        origin = Origin(
            model=_plain(info.get("model") or model),
            version=_plain(told.get("version") or version),
            corrected=corrected,
            creator=_plain(info.get("user") or info.get("client_id") or "") if corrected else "",
        )
        given = info.get("label_info") if isinstance(info.get("label_info"), list) else []
        names = [entry.get("name") for entry in given if isinstance(entry, Mapping)] or told.get("label_names") or ()
        return write_seg(label, self.series(image_id), _preferred(self._values(), names), origin)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse: scans come through the archive."""
        raise ValueError(f"Send the scan to the archive {self.archive.url} (STOW-RS); it is listed at once.")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Refuse: DICOMweb cannot delete."""
        raise ValueError(f"Delete the segmentation of {label_id} in the archive {self.archive.url}; it then is gone.")

    def refresh(self) -> None:
        """Look into the archive now."""
        self._reconcile_datastore()

    def look_again(self) -> None:
        """Let the next request look into the archive."""
        self._due = 0.0

    @property
    def _cache(self) -> Path:
        return Path(self._datastore_path)

    def _look(self) -> None:
        """Ask the archive what is new, now and then; one that is slow is not waited for."""
        if not self._looked:  # the first time: what the cache remembers may be long gone
            with self._asking:
                if not self._looked:
                    self._reconcile_datastore()
                    self._looked, self._due = True, time.monotonic() + EVERY
            return
        if time.monotonic() < self._due or not self._asking.acquire(blocking=False):
            return
        thread = threading.Thread(target=self._ask, name="archive", daemon=True)
        thread.start()
        thread.join(WAIT)

    def _ask(self) -> None:
        begin = time.monotonic()
        self._due = begin + EVERY
        try:
            self._reconcile_datastore()
        except Exception as error:  # whatever an archive sends; until another look goes well, nothing changes
            logger.warning("looking into the archive: %s", error)
        finally:
            self._due = max(self._due, time.monotonic() + SHARE * (time.monotonic() - begin)) if self._due else 0.0
            self._asking.release()

    def _reconcile_datastore(self) -> None:
        begin, values = int(time.time()), self._values()
        images = self.archive.images()
        if not values:  # while the app starts: its networks, which name the classes, are read after this
            return
        segs = self._index.newest(self.archive, values)
        with self._changing():
            old = self._datastore.objects
            new = {uid: listed(uid, info, segs.get(uid), old.get(uid), begin) for uid, info in images.items()}
            if new != old:
                self._swap(new)

    def _is_whole(self, folder: Path, count: str) -> bool:
        """Whether an image's files are all there; an archive that gives others than it counts is asked once."""
        if not folder.is_dir():
            return False
        return count in ("", str(len(list(folder.iterdir()))), self._counted.get(folder.name))

    def _fetching(self, image_id: str) -> FileLock:
        """Nobody else, in this process or another, fetches or converts the same image."""
        folder = self._cache / ".locks"
        folder.mkdir(exist_ok=True)
        return FileLock(folder / image_id)


def _preferred(values: Mapping[str, int], names: Iterable[Any]) -> dict[str, int]:
    """The classes, those that the client names first: models may share a value."""
    named = {str(name).lower() for name in names}
    return dict(sorted(values.items(), key=lambda item: item[0].lower() not in named))


def _plain(text: Any) -> str:
    """What a client says, as DICOM takes it: one line, not long, without the signs that part values and names."""
    return re.sub(r"[^\w .@+-]", " ", str(text), flags=re.ASCII)[:32].strip()


def _newest(folder: Path) -> Path:
    """The newest of the objects of a segmentation series."""
    return max(folder.glob("*.dcm"), key=lambda file: made(pydicom.dcmread(file, stop_before_pixels=True)))


def _mark(volume: nib.Nifti1Image, uid: str) -> None:
    """Let the file say which segmentation it holds."""
    volume.header["descrip"] = uid


def _marked(file: Path) -> str:
    return bytes(nib.load(file).header["descrip"].tobytes()).rstrip(b"\0").decode(errors="replace")


def open_studies(
    url: str,
    folder: Path,
    *,
    values: Callable[[], Mapping[str, int]],
    replaced: Path,
    origin: Callable[[], tuple[str, str]],
) -> DicomStudies:
    """The studies of a DICOMweb address."""
    return DicomStudies(Archive(url), folder, values=values, replaced=replaced, origin=origin)
