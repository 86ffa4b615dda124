"""`nny compare`: train or collect several networks, and write what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.compare.analysis import analyse
from scripts.compare.collect import read_runs
from scripts.compare.page import write_comparison
from scripts.compare.papers import find_tables
from scripts.compare.running import plan_jobs, run_jobs
from scripts.shares import launched


def compare(
    *runs: str,
    output: str = "work/compare",
    dataset: str | None = None,
    overlays: str = "",
    networks: str = "",
    fusions: str = "",
    seeds: int | Sequence[int] = (0, 1),
    epochs: int | None = None,
    minutes: float | None = None,
    metric: str = "dice",
    against: str | None = None,
    tracking: str | None = None,
    **overrides: Any,
) -> str:
    """Compare networks on equal terms: a leaderboard with intervals, tests, ranks, costs and calibration.

    Two ways, which may be mixed: name finished runs, or a dataset and networks to train on it. Training goes on where
    it was stopped, and finished runs are kept. Started by torchrun, each process makes its share of the runs; the same
    command without torchrun then writes the page.

    Args:
        *runs: finished runs, or folders of them; name=folder gives one a name.
        output: folder for index.html, leaderboard.csv, .md and .tex, tests.csv, groups.csv, and runs/.
        dataset: prepared dataset to train on.
        overlays: of the data, separated by commas: dataset_acdc,dataset_acdc_2d.
        networks: network overlays without network_, separated by commas; unet+my.yaml adds a file of your own.
        fusions: fusion overlays without fusion_, separated by commas; by default that of the data's overlay.
        seeds: base seeds; every network and fusion is trained with each.
        epochs: budget of every run in epochs; or
        minutes: in minutes of training, which give each network its own epochs.
        metric: what to rank by: dice, iou, hd95, assd, surface_dice, recall, precision, accuracy.
        against: also print the difference to a paper's table: paper (all), or one of docs/reproduce.md.
        tracking: mlflow, to also write the runs into <output>/mlflow.db.
        **overrides: any id of the configuration, the same for all: --learning_rate 0.002 --patch_size "[64,64,32]" …

    Returns:
        Path of the page, or what is still to be done.

    Raises:
        ValueError: unknown names, other terms than those that the folder was begun with, or runs that cannot be
            compared.
        RuntimeError: not a single run could be finished.
    """
    if launched() and dataset is None:
        raise ValueError("There is nothing to train, so nothing for several processes: start it without torchrun.")
    papers = find_tables(against) if against else []
    folder = Path(output).expanduser().resolve()
    failed: dict[str, str] = {}
    if dataset is not None:
        chosen = (seeds,) if isinstance(seeds, int) else tuple(seeds)
        jobs = plan_jobs(folder, overlays, networks, fusions, chosen)
        settings: dict[str, Any] = dict(overrides)
        if tracking:
            settings |= {"tracking": tracking, "tracking_store": f"sqlite:///{folder / 'mlflow.db'}"}
        place = str(Path(dataset).expanduser().resolve())
        failed = run_jobs(jobs, place, folder, epochs=epochs, minutes=minutes, **settings)
        if launched():
            count = sum(job.finished for job in jobs)
            words = f"; failed: {', '.join(failed)}" if failed else ""
            return (
                f"{count} of {len(jobs)} runs are finished{words}. The same command without torchrun writes the page."
            )
        runs = (*runs, *(str(job.folder) for job in jobs if job.folder.name not in failed))
    elif networks or epochs or minutes or overrides:
        raise ValueError("networks, epochs, minutes and ids of the configuration are for training; give --dataset too.")
    found = analyse(read_runs(runs), metric=metric)
    return write_comparison(found, folder, papers=papers, failed=failed, budget=_budget(epochs, minutes))


def _budget(epochs: int | None, minutes: float | None) -> str:
    """The budget of the runs in words; empty for runs that were trained elsewhere."""
    if epochs:
        return f"{epochs} epochs each"
    return f"{minutes:g} minutes of training steps each" if minutes else ""
