"""The downloads that ``nny prepare <name>`` knows, in one table: layout, classes, where to get them, which terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scripts.clinical_schema import suggestion
from scripts.prepare import layouts
from scripts.prepare.cohort import Cohort, prepare_cohort
from scripts.prepare.kits19_clinical import read_kits_json
from scripts.prepare.scans import SourceCase, read_case
from scripts.prepare.spreadsheet import Spreadsheet

_ABDOMEN = (
    "background, spleen, right kidney, left kidney, gallbladder, esophagus, liver, stomach, aorta, inferior vena cava, "
)
_HEART = "background, right ventricle, myocardium, left ventricle"


@dataclass(frozen=True)
class Download:
    """A dataset as one downloads it.

    Args:
        title: its name.
        labels: class names separated by commas, background first.
        find: looks through the unpacked folder.
        layout: what the folder holds, for people.
        where: where to get it.
        terms: under which terms, as far as we could verify.
        channels: what each channel is.
        values: value in the label files -> class; None: as they are.
        parts: parts of the download; the first is taken unless another is asked for.
        group: what the groups of the cases are, if there are any.
        regions: overlapping regions, as unions of classes.
        clinical: reads its clinical table.
        note: what one should know before one trains.
    """

    title: str
    labels: str
    find: layouts.Finder
    layout: str
    where: str
    terms: str
    channels: Sequence[str] = ("CT",)
    values: Mapping[int, int] | None = None
    parts: Sequence[str] = ("training",)
    group: str = ""
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    clinical: Callable[[Path], Spreadsheet] | None = None
    note: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, background first."""
        return tuple(name.strip() for name in self.labels.split(","))


DOWNLOADS = {
    "btcv": Download(
        title="BTCV abdomen",
        labels=_ABDOMEN + "portal and splenic veins, pancreas, right adrenal gland, left adrenal gland",
        find=layouts.find_btcv,
        layout="RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz (30 cases)",
        where="synapse.org, project syn3193805, Abdomen/RawData.zip (free registration)",
        terms="those that Synapse shows before the download",
    ),
    "synapse": Download(
        title="Synapse, 8 organs",
        labels="background, aorta, gallbladder, left kidney, right kidney, liver, pancreas, spleen, stomach",
        find=layouts.find_synapse,
        layout="that of btcv: RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz",
        where="synapse.org, project syn3193805, Abdomen/RawData.zip (free registration)",
        terms="those that Synapse shows before the download",
        values={0: 0, 8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8} | dict.fromkeys((5, 9, 10, 12, 13), 0),
        note="TransUNet's split: train with --fold 0, which holds out the 12 test cases; the other 18 are fold 1.",
    ),
    "acdc": Download(
        title="ACDC",
        labels=_HEART,
        find=layouts.find_acdc,
        layout="training/patient001/Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz; and testing/",
        where="humanheart-project.creatis.insa-lyon.fr/database (collection ACDC)",
        terms="research; cite Bernard et al. 2018 (the site states the licence; copies name CC BY-NC-SA 4.0)",
        channels=("cine MR",),
        parts=("training", "testing"),
        group="the diagnosis (DCM, HCM, MINF, NOR, RV)",
        note="The two frames of a patient, end-diastole and end-systole, are two cases, in one fold.",
    ),
    "mnms": Download(
        title="M&Ms",
        labels=_HEART,
        find=layouts.find_mnms,
        layout="Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz (4D), A0S9V9_sa_gt.nii.gz; Validation/, Testing/ the same; "
        "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv",
        where="ub.edu/mnms",
        terms="those of the request form there; cite Campello et al. 2021",
        channels=("cine MR",),
        values={0: 0, 1: 3, 2: 2, 3: 1},
        parts=("training", "validation", "testing", "all"),
        group="the vendor (A, B, C, D)",
        note="With --part all, --fold 0 is the challenge's split: it holds out the validation and testing cases "
        "(vendors A to D); the training cases (A, B) are fold 1. Of each 4D scan, end-diastole and end-systole (frames "
        "from 0, as the CSV counts) become two cases of one fold. Values are turned into those of ACDC: 1 right "
        "ventricle, 2 myocardium, 3 left ventricle.",
    ),
    "amos22": Download(
        title="AMOS22",
        labels=_ABDOMEN + "pancreas, right adrenal gland, left adrenal gland, duodenum, bladder, prostate/uterus",
        find=layouts.find_amos22,
        layout="imagesTr/amos_0001.nii.gz, labelsTr/amos_0001.nii.gz; imagesVa/, labelsVa/ the same",
        where="zenodo.org/records/7262581 (amos22.zip)",
        terms="CC BY 4.0 on Zenodo",
        channels=("CT or MR",),
        parts=("training", "validation"),
        group="the modality: CT (numbers up to 500), MR (above)",
        note="Task 1 of the challenge is CT alone: --groups CT. Its validation part has labels, too.",
    ),
    "kits19": Download(
        title="KiTS19",
        labels="background, kidney, tumour",
        find=layouts.find_kits19,
        layout="data/case_00000/imaging.nii.gz, data/case_00000/segmentation.nii.gz, data/kits.json",
        where="github.com/neheller/kits19 (its starter_code.get_imaging fetches the images)",
        terms="CC BY-NC-SA 4.0 according to the challenge; the repository's MIT licence leaves the data out",
        clinical=read_kits_json,
        note="kits.json becomes clinical.csv; the overlay dataset_kits19 brings its schema, clinical_kits19.yaml.",
    ),
    "brats21": Download(
        title="BraTS 2021",
        labels="background, oedema, necrotic core, enhancing tumour",
        find=layouts.find_brats21,
        layout="BraTS2021_00000/BraTS2021_00000_t1.nii.gz, _t1ce, _t2, _flair, _seg",
        where="synapse.org, project syn25829067 (free registration)",
        terms="those that Synapse shows before the download; cite Baid et al. 2021",
        channels=("T1", "T1 contrast", "T2", "FLAIR"),
        values={0: 0, 2: 1, 1: 2, 4: 3},
        regions={"whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing tumour": [3]},
        note="The image has four channels. The overlapping regions are unions of classes that are nested, so one label "
        "map holds them all; dataset.json lists them as `regions`.",
    ),
}


def prepare_download(
    name: str,
    source: str,
    output: str,
    *,
    part: str = "",
    groups: str | Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Prepares one of `DOWNLOADS`.

    Args:
        name: its name.
        source: the unpacked download.
        output: the folder to write.
        part: which part of it; the first of its parts by default.
        groups: keep the cases of these groups only, separated by commas.
        **options: of `prepare_cohort`.

    Returns:
        dict: as `prepare_cohort`.

    Raises:
        FileNotFoundError: nothing there that looks like the download.
        ValueError: an unknown part or group, or not a single usable case.
    """
    known = DOWNLOADS[name]
    part = part or known.parts[0]
    if part not in known.parts:
        raise ValueError(f"--part {part!r}; {known.title} has {', '.join(known.parts)}")
    root = Path(source).expanduser()
    cases, notes = _of_groups(known.find(root, part), groups), [known.note] if known.note else []
    cohort = Cohort(
        name=known.title if part == known.parts[0] else f"{known.title}, {part}",
        cases=cases,
        labels=known.classes,
        channels=known.channels,
        read=partial(
            read_case, values=known.values or {i: i for i in range(len(known.classes))}, channels=len(known.channels)
        ),
        description=f"From {known.where}",
        regions=known.regions,
        more={"licence": known.terms, "reference": known.where},
        clinical=known.clinical(root) if known.clinical else None,
        notes=notes,
    )
    return prepare_cohort(cohort, output, **options)


def _of_groups(cases: list[SourceCase], groups: str | Sequence[str]) -> list[SourceCase]:
    wanted = groups.split(",") if isinstance(groups, str) else list(groups)
    wanted = [str(group).strip() for group in wanted if str(group).strip()]
    there = {case.group for case in cases}
    for group in wanted:
        if group not in there:
            raise ValueError(f"no case of group {group!r}{suggestion(group, there)}; there are {sorted(there)}")
    return [case for case in cases if not wanted or case.group in wanted]


def command(name: str) -> Callable[..., dict[str, Any]]:
    """Makes the function behind ``nny prepare <name>``, whose help is the table's entry."""
    known = DOWNLOADS[name]

    def prepare(
        source: str,
        output: str,
        *,
        part: str = known.parts[0],
        groups: str = "",
        folds: int = 5,
        seed: int = 0,
        workers: int = 2,
        overwrite: bool = False,
        progress: bool = True,
    ) -> dict[str, Any]:
        options = {"folds": folds, "seed": seed, "workers": workers, "overwrite": overwrite, "progress": progress}
        return prepare_download(name, source, output, part=part, groups=groups, **options)

    prepare.__name__ = prepare.__qualname__ = f"prepare_{name}"
    prepare.__doc__ = _HELP.format(
        title=known.title,
        layout=known.layout,
        where=known.where,
        terms=known.terms,
        classes=", ".join(f"{i} {label}" for i, label in enumerate(known.classes)),
        note=known.note,
        parts=", ".join(known.parts),
        group=f"keep the cases of these groups only, separated by commas; the group is {known.group}."
        if known.group
        else "this download has none.",
    )
    return prepare


_HELP = """Turns the download of {title} into NIfTI images and labels, dataset.json with folds, and a report.

Nothing is downloaded. Get it from {where}; terms: {terms}.
Classes: {classes}.
{note}
Finished cases are skipped when the same command runs again; a broken case is reported and left out.

Args:
    source: the unpacked download, holding {layout}.
    output: the folder to write.
    part: which part of the download: {parts}.
    groups: {group}
    folds: number of folds for cross-validation; a patient is in one fold only.
    seed: seed of the folds.
    workers: processes.
    overwrite: make every case again, also the finished ones.
    progress: show a progress bar.

Returns:
    dict: `output`, `kept` (cases), `broken` (case -> reason), `resumed` (cases done before), `report`.
"""
