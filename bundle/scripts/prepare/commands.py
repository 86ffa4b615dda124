"""What ``nny prepare <name>`` offers: formats that many datasets come in, and downloads by their names."""

from __future__ import annotations

from scripts.prepare.bids import prepare_bids
from scripts.prepare.dicom_cases import prepare_dicom
from scripts.prepare.downloads import DOWNLOADS, command
from scripts.prepare.folders import prepare_folders
from scripts.prepare.formats import prepare_msd, prepare_nnunet
from scripts.prepare.hcc_tace import prepare_hcc_tace

COMMANDS = {
    "msd": prepare_msd,
    "nnunet": prepare_nnunet,
    "folders": prepare_folders,
    "bids": prepare_bids,
    "dicom": prepare_dicom,
    "hcc_tace": prepare_hcc_tace,
    **{name: command(name) for name in DOWNLOADS},
}
