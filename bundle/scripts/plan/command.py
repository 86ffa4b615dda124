"""`nny plan`: look at a dataset's training cases, decide, measure, and write an overlay, its reasons and a page."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.plan.decide import Plan, Wishes, decide
from scripts.plan.fingerprint import FOLDER, Fingerprint, dataset_folder, take_fingerprint
from scripts.plan.memory import find_limits
from scripts.plan.overlay import overlay_text, write_overlay
from scripts.plan.page import write_plan_page
from scripts.plan.stages import network_overlays


def plan(
    dataset: str,
    *,
    network: str = "unet",
    memory: float | None = None,
    seconds: float | None = None,
    output: str | None = None,
    fold: int = 0,
    modality: str = "",
    spacing_known: bool | None = None,
    dimensions: int | None = None,
    workers: int = 2,
    progress: bool = True,
) -> str:
    """Plan a configuration for a prepared dataset: an overlay for `nny train`, with a reason beside each value.

    Only training cases are looked at. Patch and batch are those whose training step, run and measured, fits the
    memory. What was measured of the cases is kept beside the output: a call that was stopped goes on there.

    Args:
        dataset: the folder that `prepare` wrote, or its dataset.json.
        network: network overlay without network_, or a YAML file; base for that of inference.yaml. The patch is
            measured for this network: plan again for another one.
        memory: GB that training steps may take, beside the images that training keeps in memory; by default 90 % of the
            GPU's, or on a CPU half of the machine's, 4 GB at most.
        seconds: that a training step may take, too; by default 0.5 on a CPU, no limit on a GPU. 0: no limit.
        output: the overlay to write; by default work/plan/dataset_<name>.yaml. The page lies beside it, as .html.
        fold: the fold that is held out; its cases are not opened.
        modality: CT (grey values are Hounsfield units), MR or another; by default what dataset.json or the values say.
        spacing_known: whether voxel sizes are true; by default judged from the files.
        dimensions: 2 (slices) or 3 (volumes); by default what network and data allow.
        workers: processes that read cases.
        progress: show progress.

    Returns:
        Path of the overlay.

    Raises:
        FileNotFoundError: no dataset there.
        ValueError: data that cannot be trained on, each file with its problem; unknown names; too little memory.
    """
    limits = find_limits(memory, seconds)
    network_overlays(network)  # before anything that takes time
    folder = dataset_folder(dataset)
    target = Path(output or f"work/plan/dataset_{re.sub(r'[^a-zA-Z0-9]+', '_', folder.name)}.yaml").expanduser()
    if target.suffix not in (".yaml", ".yml"):
        raise ValueError(f"output is {target}; expected the name of a YAML file to write, such as dataset_mine.yaml.")
    store = target.parent / FOLDER / target.stem
    data = take_fingerprint(folder, int(fold), store, workers=workers, progress=progress)
    found = decide(data, network, limits, Wishes(str(modality), spacing_known, dimensions), progress=progress)
    write_overlay(target, overlay_text(found.choices, _header(found, target), _clinical_note(data)))
    page = write_plan_page(found, target.with_suffix(".html"), _train_command(found, target))
    for warning in found.warnings:
        print(f"Warning: {warning}")
    print(f"{page} shows the data, and why. To train:\n{_train_command(found, target)}")
    return str(target)


def _train_command(found: Plan, target: Path) -> str:
    """The plan comes after the network's overlay, whose patch it replaces."""
    overlays = ",".join([*found.meter.overlays, str(target)])
    return f"nny train {found.data.folder} work/runs/{target.stem.removeprefix('dataset_')} {overlays}"


def _header(found: Plan, target: Path) -> list[str]:
    data = found.data
    names = [Path(name).name for name in found.meter.overlays]
    after = f"name this file after {', '.join(names)}" if names else "that of inference.yaml"
    return [
        f"{data.name}: planned by `nny plan` from {len(data.records)} training cases; the {data.held_out} of fold "
        f"{data.fold} were not opened. {target.with_suffix('.html').name} shows what they are like.",
        f"Patch and batch were measured with {Path(found.network).stem} ({after}); plan again for another network.",
        f"Images: {found.modality.name} ({found.modality.reason}).",
    ]


def _clinical_note(data: Fingerprint) -> str:
    if (data.folder / "clinical.csv").is_file():
        return (
            "Images alone. To use clinical.csv: write a schema (docs/clinical.md), name it as clinical_schema in place "
            "of these lines, and add a fusion overlay."
        )
    return "Images alone: the dataset has no clinical.csv."
