"""A DICOM archive (PACS) by DICOMweb: which series it holds, what is labelled, and scans and labels to and from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from monailabel_app.lib.datastore.dicom_seg import is_our_mask, segment_names

CONNECT, READ = 5.0, 120.0  # seconds until an archive counts as gone
COUNT = "NumberOfSeriesRelatedInstances"
SHOWN = (
    "Modality",
    "PatientID",
    "PatientName",
    "StudyDate",
    "StudyTime",
    "SeriesDescription",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    COUNT,
)


class ArchiveError(Exception):
    """The archive does not answer, or refuses; nothing has changed."""


@dataclass(frozen=True)
class Seg:
    """A segmentation series: its study, the series it was drawn on, what its segments are called, when it was made,
    and whether it is a mask of ours that nobody has looked at, which is no label."""

    uid: str
    study: str
    image: str
    names: tuple[tuple[str, ...], ...]
    made: str
    automatic: bool


class Archive:
    """What the app asks of a DICOMweb server.

    Args:
        url: its DICOMweb address, such as ``http://127.0.0.1:8042/dicom-web``. User and password come from MONAI
            Label's settings ``MONAI_LABEL_DICOMWEB_USERNAME`` and ``_PASSWORD``.
        search: which series are images, by DICOM attribute; by default MONAI Label's
            ``MONAI_LABEL_DICOMWEB_SEARCH_FILTER``.
    """

    def __init__(self, url: str, search: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self.search = dict(search or settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)
        login = (settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD)
        session = create_session_from_user_pass(*login) if all(login) else requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Timeout())
        self._client = DICOMwebClientX(
            url=self.url,
            session=session,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        self._client.set_http_retry_params(retry=False)

    def images(self) -> dict[str, dict[str, str]]:
        """What is known of each series that may be segmented, by SeriesInstanceUID; a single slice is no volume."""
        found = [{name: _value(entry, name) for name in SHOWN} for entry in self._series(self.search)]
        return {info["SeriesInstanceUID"]: info for info in found if int(info[COUNT] or 2) > 1}

    def segs(self) -> dict[str, str]:
        """Study by SeriesInstanceUID of all segmentation series."""
        found = self._series({"Modality": "SEG"})
        return {_value(entry, "SeriesInstanceUID"): _value(entry, "StudyInstanceUID") for entry in found}

    def seg(self, study: str, uid: str) -> Seg:
        """What a segmentation series says of itself; ``image`` is empty where it refers to no series."""
        with _answering(self.url):
            found = self._client.retrieve_series_metadata(study, uid)
        listed = [Dataset.from_json(entry, bulk_data_uri_handler=lambda *_: b"") for entry in found]
        item = max(listed, key=made)
        referred = item.get("ReferencedSeriesSequence") or []
        image = str(referred[0].SeriesInstanceUID) if referred else ""
        return Seg(uid, study, image, tuple(segment_names(item)), made(item), is_our_mask(item))

    def download(self, study: str, uid: str, folder: Path) -> Path:
        """Get all instances of a series, whole or not at all.

        Args:
            study: its StudyInstanceUID.
            uid: its SeriesInstanceUID.
            folder: made, with one file an instance.

        Returns:
            The folder.
        """
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            with _answering(self.url):
                for item in self._client.iter_series(study, uid):
                    item.save_as(part / f"{item.SOPInstanceUID}.dcm", write_like_original=False)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return folder

    def store(self, item: Dataset) -> None:
        """Put an object into the archive.

        Raises:
            ArchiveError: the archive refuses it.
        """
        with _answering(self.url):
            answer = self._client.store_instances([item])
        refused = answer.get("FailedSOPSequence") or []
        if refused:
            reason = refused[0].get("FailureReason")
            raise ArchiveError(f"The DICOM archive {self.url} refuses the segmentation (reason {reason}).")

    def _series(self, search: Mapping[str, Any]) -> list[dict[str, Any]]:
        with _answering(self.url):
            return self._client.search_for_series(search_filters=dict(search), fields=[*SHOWN], get_remaining=True)


def _value(entry: Mapping[str, Any], keyword: str) -> str:
    """The first value of an attribute in a DICOM JSON object; pydicom's reading takes a second for 1000 of these."""
    values = entry.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value") or [""]
    return str(values[0].get("Alphabetic", "") if isinstance(values[0], dict) else values[0])


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the archive into one kind of error that names it."""
    try:
        yield
    except requests.RequestException as error:
        raise ArchiveError(f"The DICOM archive {url} does not answer: {error}") from error


class _Timeout(HTTPAdapter):
    """Gives every request an end."""

    def send(self, request: requests.PreparedRequest, **given: Any) -> requests.Response:  # type: ignore[override]
        return super().send(request, **{**given, "timeout": given.get("timeout") or (CONNECT, READ)})


def made(item: Dataset) -> str:
    """When an object was made, as text that sorts."""
    date, time = (str(item.get(f"Content{part}") or item.get(f"Series{part}") or "") for part in ("Date", "Time"))
    return date + time
