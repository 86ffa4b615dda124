"""Finds the cases of well-known downloads: which folders and files each is laid out in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from scripts.datalists import case_name
from scripts.prepare.scans import SourceCase

SYNAPSE_TEST = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)  # lists/lists_Synapse/test_vol.txt of TransUNet
SYNAPSE_TRAIN = (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
BRATS_CHANNELS = ("t1", "t1ce", "t2", "flair")
KITS19_LABELLED = 210  # cases from 210 on are the test set, which has no segmentation
AMOS_CT = 500  # numbers up to this one are CT, the others MR
MNMS_PARTS = {"training": "Training/Labeled", "validation": "Validation", "testing": "Testing"}
MNMS_FOLDS = {"validation": 0, "testing": 0, "training": 1}  # of all parts: the challenge's split
ACDC_PHASES = ("ED", "ES")


def find_btcv(source: Path, part: str) -> list[SourceCase]:
    """BTCV: ``RawData/Training/img/img0001.nii.gz`` beside ``label/label0001.nii.gz``."""
    images = [p for p in _below(source, "img/img[0-9]*.nii*") if (p.parent.parent / "label").is_dir()]
    cases = []
    for image in images:
        number = re.sub(r"\D", "", case_name(image))
        label = image.parent.parent / "label" / image.name.replace("img", "label", 1)
        cases.append(_case(f"case{number}", [image], label))
    return cases


def find_synapse(source: Path, part: str) -> list[SourceCase]:
    """Synapse as TransUNet uses it: the cases of BTCV, the 12 test cases in fold 0, the 18 training cases in fold 1."""
    fold_of = {f"case{n:04d}": fold for fold, numbers in enumerate((SYNAPSE_TEST, SYNAPSE_TRAIN)) for n in numbers}
    cases = []
    for case in find_btcv(source, part):
        problem = "" if case.case_id in fold_of else f"{case.images[0]} is in neither list of TransUNet's split"
        cases.append(_with(case, fold=fold_of.get(case.case_id, 1), problem=problem))
    return cases


def find_acdc(source: Path, part: str) -> list[SourceCase]:
    """ACDC: ``training/patient001/`` with ``Info.cfg`` and a frame and its label for each of ED and ES."""
    cases = []
    for folder in (p for p in _below(source, f"{part}/patient[0-9]*") if p.is_dir()):
        info = folder / "Info.cfg"
        try:
            lines = [line.partition(":") for line in info.read_text().splitlines() if ":" in line]
            facts = {key.strip(): value.strip() for key, _, value in lines}
            frames = [int(facts[phase]) for phase in ACDC_PHASES]
        except (OSError, KeyError, ValueError) as error:
            problem = f"{info} does not say which frames are ED and ES ({type(error).__name__}: {error})"
            cases.append(_with(_case(folder.name, [], None), problem=problem))
            continue
        for frame in frames:
            name = f"{folder.name}_frame{frame:02d}"
            case = _case(name, [_either(folder, name)], _either(folder, f"{name}_gt"), patient=folder.name)
            cases.append(_with(case, group=facts.get("Group", "")))
    return cases


def find_mnms(source: Path, part: str) -> list[SourceCase]:
    """M&Ms: ``Training/Labeled/<code>/<code>_sa.nii.gz`` (4D) and ``_sa_gt``; the CSV says frames and vendor.

    All parts together keep the challenge's split: training cases in fold 1, those of validation and testing in fold 0.
    """
    if part == "all":
        found = {name: find_mnms(source, name) for name in MNMS_FOLDS}
        return [_with(case, fold=MNMS_FOLDS[name]) for name, cases in found.items() for case in cases]
    folders = [p for p in _below(source, f"{MNMS_PARTS[part]}/*") if p.is_dir()]
    path, rows = _mnms_table(source)
    cases = []
    for folder in folders:
        code, row = folder.name, rows.get(folder.name, {})
        image, label = folder / f"{code}_sa.nii.gz", folder / f"{code}_sa_gt.nii.gz"
        try:
            frames = [int(float(row[phase])) for phase in ACDC_PHASES]
        except (KeyError, ValueError):
            what = f"ED {row.get('ED')!r}, ES {row.get('ES')!r}" if row else "no row"
            problem = f"{path} has {what} for {code}, whose scan is {image}; expected the numbers of two frames"
            cases.append(_with(_case(code, [image], label), problem=problem))
            continue
        for frame in frames:
            case = _case(f"{code}_frame{frame:02d}", [image], label, patient=code)
            cases.append(_with(case, frame=frame, group=row["Vendor"]))
    return cases


def _mnms_table(source: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    tables = [p for p in _below(source, "*.csv", required=False) if "External code" in p.read_text(errors="replace")]
    if len(tables) != 1:
        raise ValueError(
            f"{source} holds {len(tables)} tables with a column 'External code'; expected one, "
            "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
        )
    table = pd.read_csv(tables[0], dtype=str, keep_default_na=False)
    missing = {"External code", "Vendor", *ACDC_PHASES} - set(table.columns)
    if missing:
        raise ValueError(f"{tables[0]} has no column {', '.join(sorted(missing))}; it has {list(table.columns)}")
    return tables[0], {row["External code"].strip(): row for row in table.to_dict("records")}


def find_amos22(source: Path, part: str) -> list[SourceCase]:
    """AMOS22: ``imagesTr/amos_0001.nii.gz`` and ``labelsTr``, or ``imagesVa`` and ``labelsVa``."""
    suffix = {"training": "Tr", "validation": "Va"}[part]
    cases = []
    for image in _below(source, f"images{suffix}/amos_*.nii.gz"):
        name = case_name(image)
        label = image.parent.parent / f"labels{suffix}" / image.name
        modality = "CT" if int(name.rpartition("_")[2]) <= AMOS_CT else "MR"
        cases.append(_with(_case(name, [image], label), group=modality))
    return cases


def find_kits19(source: Path, part: str) -> list[SourceCase]:
    """KiTS19: ``data/case_00000/imaging.nii.gz`` and ``segmentation.nii.gz``."""
    folders = [p for p in _below(source, "case_[0-9]*") if p.is_dir()]
    return [
        _case(folder.name, [folder / "imaging.nii.gz"], folder / "segmentation.nii.gz")
        for folder in folders
        if int(folder.name.rpartition("_")[2]) < KITS19_LABELLED
    ]


def find_brats21(source: Path, part: str) -> list[SourceCase]:
    """BraTS 2021: ``BraTS2021_00000/BraTS2021_00000_t1.nii.gz``, ``_t1ce``, ``_t2``, ``_flair`` and ``_seg``."""
    return [
        _case(
            folder.name,
            [folder / f"{folder.name}_{channel}.nii.gz" for channel in BRATS_CHANNELS],
            folder / f"{folder.name}_seg.nii.gz",
        )
        for folder in _below(source, "BraTS2021_[0-9]*")
        if folder.is_dir()
    ]


Finder = Callable[[Path, str], list[SourceCase]]


def _case(name: str, images: list[Path], label: Path | None, patient: str = "") -> SourceCase:
    return SourceCase(name, patient or name, tuple(map(str, images)), "" if label is None else str(label))


def _with(case: SourceCase, **changes: object) -> SourceCase:
    return SourceCase(**{**vars(case), **changes})


def _either(folder: Path, name: str) -> Path:
    """The packed file or, where there is only that, the unpacked one."""
    packed, plain = folder / f"{name}.nii.gz", folder / f"{name}.nii"
    return plain if plain.is_file() and not packed.is_file() else packed


def _below(source: Path, pattern: str, required: bool = True) -> list[Path]:
    """What matches anywhere below a folder, sorted; hidden files, such as macOS writes, are passed over."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; --source must be the unpacked download")
    found = sorted(p for p in source.rglob(pattern) if not p.name.startswith(".") and "__MACOSX" not in p.parts)
    if required and not found:
        raise FileNotFoundError(f"{source} holds no {pattern} at any depth; --source must be the unpacked download")
    return found
