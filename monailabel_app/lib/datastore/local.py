"""A folder of NIfTI files as MONAI Label's datastore, whose files survive kills, full disks and several clients."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel as nib
from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from scripts.datalists import NIFTI, case_name
from scripts.files import replacing
from watchdog.events import FileSystemEvent

from monailabel_app.lib.datastore.labels import check_id, read_label

TAGS = tuple(tag.value for tag in DefaultLabelTag)
PATIENT = "PatientID"  # whose image it is: its row of the clinical table, and its side of the training's split
FIXED = (PATIENT, "StudyInstanceUID", "SeriesInstanceUID", "id", "name", "path", "ts")  # what the server relies on


class StudyFolder(LocalDatastore):
    """Images ``<folder>/<id>.nii.gz``, labels ``<folder>/labels/<tag>/<id>.nii.gz``, the rest in datastore_v2.json.

    Differences to MONAI Label's: every file is replaced in one step; a label is checked against its image before it
    takes the place of another, which is kept in ``replaced``; changes by other processes (training, the file manager)
    are read before each change of its own; readers in other threads always see a whole state; ids are plain names.

    Args:
        folder: the images.
        values: gives value by name of the classes that a label may hold.
        replaced: folder that keeps the labels which a later one replaced.
        watch: notice files that others add or remove, at once.
    """

    def __init__(
        self, folder: str, *, values: Callable[[], Mapping[str, int]], replaced: Path, watch: bool = True
    ) -> None:
        self._values, self._replaced = values, replaced
        self._mutex = threading.RLock()
        # MONAI Label's own lock file is not reentrant; ours guards every read-change-write as a whole
        self._between_processes = FileLock(os.path.join(folder, ".nny.lock"))
        try:
            super().__init__(folder, extensions=[f"*{suffix}" for suffix in NIFTI], auto_reload=watch)
        except ValueError as error:
            raise ValueError(
                f"{self._datastore_config_path} is damaged ({str(error).splitlines()[0]}). Move it away: images and "
                "labels are found again in their folders."
            ) from error
        if watch:
            self._handler.on_moved = self._on_any_event  # how files that are replaced in one step arrive

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label and save it, whole or not at all; the one before is kept.

        Raises:
            ImageNotFoundException: no such image.
            ValueError: an unknown tag, or a label that `read_label` refuses.
            OSError: the disk is full; the old label is still there.
        """
        tag = check_tag(label_tag)
        if image_id not in self._datastore.objects:
            raise ImageNotFoundException(f"There is no image {image_id!r} in {self._datastore_path}.")
        info = dict(label_info or {})
        volume = read_label(label_filename, self.get_image_uri(image_id), self._values(), info)
        file = Path(self._datastore.label_path(tag)) / f"{image_id}.nii.gz"
        with self._changing():
            old = self._entry(image_id)
            before = old.labels.get(tag)
            _write(volume, file, keep=self._kept(image_id, tag, before) if before else None)
            info |= {"ts": int(time.time()), "name": file.name}
            self._put(image_id, old.image, {**old.labels, tag: DataModel(info=info, ext=".nii.gz")})
        return image_id

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Check an image and add it; its info may name the patient, by ``PatientID``, who then stays.

        Raises:
            ValueError: an id that is no plain name or is taken, other info that the server relies on, or a file that is
                no NIfTI image.
        """
        name = check_id(image_id or case_name(image_filename), "The image's id")
        info = dict(image_info or {})
        _check_info({key: value for key, value in info.items() if key != PATIENT})
        if PATIENT in info:
            info[PATIENT] = _patient(info[PATIENT])
        suffix = next((s for s in NIFTI if image_filename.endswith(s)), None)
        try:
            readable = suffix is not None and len(nib.load(image_filename).dataobj.shape) in (3, 4)
            if readable:
                nib.load(image_filename).dataobj[..., :1]
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise ValueError(f"The image {name} cannot be read ({error}); nothing was saved.") from error
        if not readable:
            raise ValueError(f"The image {name} is no volume in {' or '.join(NIFTI)}; nothing was saved.")
        file = Path(self._datastore.image_path()) / f"{name}{suffix}"
        with self._changing():
            if name in self._datastore.objects or file.exists():
                raise ValueError(f"There is an image {name!r} already. Choose another id; images are not replaced.")
            with replacing(file) as part:
                shutil.copyfile(image_filename, part)
            info |= {"ts": int(time.time()), "name": file.name}
            self._put(name, DataModel(info=info, ext=suffix), {})
        return name

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image; ValueError for what the server relies on."""
        _check_info(info)
        with self._changing():
            old = self._entry(image_id)
            merged = DataModel(info={**old.image.info, **info}, ext=old.image.ext)
            self._put(image_id, merged, dict(old.labels))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label; ValueError for what the server relies on."""
        _check_info(info)
        with self._changing():
            old = self._entry(label_id)
            label = old.labels.get(label_tag)
            if label is None:
                raise LabelNotFoundException(f"There is no label {label_id!r} with the tag {label_tag!r}.")
            merged = DataModel(info={**label.info, **info}, ext=label.ext)
            self._put(label_id, old.image, {**old.labels, label_tag: merged})

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take a label back; the file moves to ``replaced``."""
        with self._changing():
            old = self._entry(label_id)
            label = old.labels.get(label_tag)
            if label is None:
                raise LabelNotFoundException(f"There is no label {label_id!r} with the tag {label_tag!r}.")
            file = Path(self._datastore.label_path(label_tag)) / f"{label_id}{label.ext}"
            kept = self._kept(label_id, label_tag, label)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, kept)
            self._put(label_id, old.image, {tag: other for tag, other in old.labels.items() if tag != label_tag})

    def remove_image(self, image_id: str) -> None:
        """Refuse: images are the hospital's, and leave the folder by its owner's hand only."""
        raise ValueError(f"Images are not removed through the server. Move {image_id} out of the folder instead.")

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a label; empty where there is none."""
        return super().get_label_uri(label_id, label_tag) if label_tag in TAGS else ""

    def refresh(self) -> None:
        """Take up the images and labels that others put into the folder or took from it."""
        self._reconcile_datastore()

    def _reconcile_datastore(self) -> None:
        with self._changing():
            images = _files(self._datastore.image_path())
            labels = {tag: _files(self._datastore.label_path(tag)) for tag in TAGS}
            old = self._datastore.objects
            new = {name: self._found(name, suffix, old.get(name), labels) for name, suffix in sorted(images.items())}
            if new != old:
                self._swap(new)

    def _found(
        self, name: str, suffix: str, old: ImageLabelModel | None, labels: Mapping[str, Mapping[str, str]]
    ) -> ImageLabelModel:
        def entry(known: DataModel | None, ext: str) -> DataModel:
            if known is not None and known.ext == ext:
                return known
            return DataModel(info={"ts": int(time.time()), "name": f"{name}{ext}"}, ext=ext)

        known = old.labels if old else {}
        found = {tag: entry(known.get(tag), files[name]) for tag, files in labels.items() if name in files}
        if old is not None and old.image.ext == suffix and found == known:
            return old
        return ImageLabelModel(image=entry(old.image if old else None, suffix), labels=found)

    def _on_any_event(self, event: FileSystemEvent) -> None:
        if self._datastore_config_path not in (event.src_path, event.dest_path):
            self.refresh()
        elif os.path.exists(self._datastore_config_path):
            with self._mutex:
                self._init_from_datastore_file()  # nothing to do if it was this process that wrote it

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Nobody else changes anything; what other processes changed is known."""
        with self._mutex, self._between_processes:
            self._init_from_datastore_file()
            yield

    def _entry(self, image_id: str) -> ImageLabelModel:
        entry = self._datastore.objects.get(image_id)
        if entry is None:
            raise ImageNotFoundException(f"There is no image {image_id!r} in {self._datastore_path}.")
        return entry

    def _put(self, image_id: str, image: DataModel, labels: dict[str, DataModel]) -> None:
        self._swap(self._datastore.objects | {image_id: ImageLabelModel(image=image, labels=labels)})

    def _swap(self, objects: dict[str, ImageLabelModel]) -> None:
        """Write a new state, then show it to the readers."""
        new = self._datastore.model_copy(update={"objects": objects})
        with replacing(self._datastore_config_path) as part:
            part.write_text(new.model_dump_json(exclude={"base_path"}))
        self._config_ts = os.stat(self._datastore_config_path).st_mtime
        self._datastore: LocalDatastoreModel = new

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._mutex:
            self._swap(dict(self._datastore.objects))

    def _kept(self, image_id: str, tag: str, label: DataModel) -> Path:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        return self._replaced / tag / f"{image_id}_{stamp}{label.ext}"


def check_tag(tag: str) -> str:
    """The tag of a label; ValueError for one that is not MONAI Label's."""
    if tag not in TAGS:
        raise ValueError(f"There is no tag {tag!r} for labels; expected one of {', '.join(TAGS)}.")
    return DefaultLabelTag(tag).value  # MONAI Label's own code passes the enumeration, others its text


def _check_info(info: Mapping[str, Any]) -> None:
    fixed = [key for key in FIXED if key in info]
    if fixed:
        raise ValueError(f"{', '.join(fixed)} cannot be set: the server relies on it. Leave it out.")


def _patient(given: Any) -> str:
    """A patient's id as a client gives it; ValueError for what DICOM would not take either."""
    name = given.strip() if isinstance(given, str) else ""
    if not 0 < len(name) <= 64 or not name.isprintable() or "\\" in name:
        raise ValueError(
            f"{PATIENT} is {given!r}; expected one line of at most 64 characters, none of them a backslash."
        )
    return name


def _write(volume: nib.Nifti1Image, file: Path, keep: Path | None) -> None:
    """Write a label in one step; the one before is kept by another name."""
    with replacing(file) as part:
        with part.open("wb") as stream:
            stream.write(compressed(volume))
        if keep is not None and file.is_file():
            with replacing(keep) as copy:
                shutil.copyfile(file, copy)


def compressed(volume: nib.Nifti1Image) -> bytes:
    """A volume as the bytes of a ``.nii.gz`` file: the same volume gives the same bytes."""
    return gzip.compress(volume.to_bytes(), compresslevel=1, mtime=0)


def _files(folder: str) -> dict[str, str]:
    """Name -> suffix of the NIfTI files of a folder."""
    if not os.path.isdir(folder):
        return {}
    found: dict[str, str] = {}
    for file in os.listdir(folder):
        suffix = next((suffix for suffix in NIFTI if file.endswith(suffix)), None)
        if suffix and not file.startswith("."):
            found.setdefault(file.removesuffix(suffix), suffix)
    return found
