"""Trains and evaluates what is to be compared: every variant with every seed, one after the other, on equal terms."""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from scripts import workflows
from scripts.compare.collect import NOTE
from scripts.compare.cost import seconds_per_step, steps_per_epoch
from scripts.datalists import part
from scripts.files import replacing
from scripts.shares import by_itself, own_share, share
from scripts.terms import keep_terms

FIRST_CASE = "$scripts.datalists.part(@dataset_dir, @fold, 'validation')[:1]"  # the evaluation scores them all
TERMS = "terms.json"
BASE = "base"  # the network of inference.yaml, without an overlay


@dataclass(frozen=True)
class Job:
    """One run to make: a variant with a seed.

    Attributes:
        network: network overlay without ``network_``, or the stem of a YAML file.
        overlays: all overlays, in the order in which they are merged.
        seed: base seed.
        folder: the run's folder.
    """

    network: str
    overlays: tuple[str, ...]
    seed: int
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the run is trained and evaluated."""
        return (self.folder / NOTE).is_file()


def plan_jobs(output: Path, dataset: str, networks: str, fusions: str, seeds: Sequence[int]) -> list[Job]:
    """List the runs: every network with every fusion and every seed.

    Args:
        output: folder of the comparison; runs go to ``runs/`` in it.
        dataset: overlays of the data, separated by commas; they are merged after the network's.
        networks: overlays without ``network_``, YAML files, or ``base`` for that of inference.yaml, separated by
            commas; ``unet+flat.yaml`` adds a file.
        fusions: overlays without ``fusion_``, separated by commas; empty for that of the dataset's overlay.
        seeds: base seeds.

    Returns:
        Jobs, seeds innermost.

    Raises:
        ValueError: no network, no seed, an unknown overlay, or one named twice.
    """
    jobs = []
    for network in _names(networks):
        main, *more = network.split("+")
        first = [] if main == BASE else [main if main.endswith(".yaml") else f"network_{main}"]
        label = "+".join(Path(name).stem for name in (main, *more))
        for fusion in _names(fusions) or [""]:
            overlays = [*first, *more, *_names(dataset), *([f"fusion_{fusion}"] if fusion else [])]
            workflows.overlay_paths(overlays)
            for seed in seeds:
                name = "-".join(filter(None, (re.sub(r"\W+", "_", label), fusion, f"seed{seed}")))
                jobs.append(Job(label, tuple(overlays), int(seed), output / "runs" / name))
    folders = [job.folder for job in jobs]
    if len(set(folders)) < len(jobs) or not jobs:
        raise ValueError(
            f"networks {networks!r}, fusions {fusions!r} and seeds {list(seeds)} make {len(jobs)} runs, of which "
            f"{len(set(folders))} differ; expected each network, fusion and seed once, and at least one of each."
        )
    return jobs


def run_jobs(
    jobs: Sequence[Job], dataset_dir: str, output: Path, *, epochs: int | None, minutes: float | None, **settings: Any
) -> dict[str, str]:
    """Train and evaluate what is not finished; the same call goes on where another one was stopped.

    Each run has a process of its own, so that its peak memory is its own, and one that fails leaves the others alone.
    Of several processes that torchrun started each makes its share of the runs.

    Args:
        jobs: of `plan_jobs`, all of them.
        dataset_dir: the prepared dataset.
        output: folder of the comparison.
        epochs: epochs of every run; or
        minutes: of training time of every run, from which each variant gets its own epochs.
        **settings: ids of the configuration, the same for all, and ``tracking``.

    Returns:
        Folder name to reason for each run that failed.

    Raises:
        ValueError: neither or both of epochs and minutes, other terms than those the folder was begun with, or what
            several processes cannot do.
        RuntimeError: not a single run could be finished.
    """
    if (epochs is None) == (minutes is None):
        raise ValueError(f"epochs is {epochs} and minutes {minutes}; give the one that is the budget of every run.")
    if min(epochs or 1, minutes or 1) <= 0:
        raise ValueError(f"The budget is {epochs or minutes}; expected a positive number.")
    number, processes = own_share()
    if processes > 1 and minutes is not None:
        raise ValueError(
            f"minutes is {minutes}: steps are timed by one process while the machine does nothing else. Give --epochs, "
            "or start without torchrun."
        )
    if processes > 1 and settings.get("tracking"):
        raise ValueError(
            f"tracking is {settings['tracking']!r}, but {processes} processes cannot write one database. Leave it out, "
            "and copy the finished runs: nny track <run>."
        )
    terms = {"dataset": str(dataset_dir), "epochs": epochs, "minutes": minutes, "settings": settings}
    keep_terms(output / TERMS, terms, "runs on different terms cannot be compared")
    jobs = share(jobs, (number, processes))
    failed: dict[str, str] = {}
    counts = {}  # all before the first training, so that the machine is as busy for each
    for job in tqdm(jobs, desc="epochs that fit", disable=minutes is None):
        with _noted(job, failed):
            counts[job] = epochs or _epochs(job, dataset_dir, output, float(minutes or 0), settings)
    bar = tqdm(counts.items(), desc="runs")
    for job, count in bar:
        bar.set_postfix_str(job.folder.name)
        if not job.finished:
            with _noted(job, failed), by_itself():
                alone(make_run, job, dataset_dir, count, settings)
    if processes == 1 and len(failed) == len(jobs):  # of several, one that ends by an error would stop the others
        raise RuntimeError(f"Not one of {len(jobs)} runs could be finished. The first: {next(iter(failed.values()))}")
    return failed


@contextmanager
def _noted(job: Job, failed: dict[str, str]) -> Iterator[None]:
    """Write a run's failure down, so that the others go on."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        failed[job.folder.name] = f"{type(error).__name__}: {error}"
        tqdm.write(f"{job.folder.name} failed: {error}")


def make_run(job: Job, dataset_dir: str, epochs: int, settings: Mapping[str, Any]) -> None:
    """Train and evaluate one run in this process. The weights of the last epoch count: nothing is chosen on held-out
    cases.

    Args:
        job: what to run.
        dataset_dir: the prepared dataset.
        epochs: epochs.
        settings: ids of the configuration, and ``tracking``.
    """
    options = {"val_interval": epochs, "validate::dataset::data": FIRST_CASE} | dict(settings)
    workflows.train(dataset_dir, str(job.folder), list(job.overlays), epochs=epochs, seed=job.seed, **options)
    memory = peak_gb()
    workflows.evaluate(str(job.folder), overlays="evaluate_calibration")
    if settings.get("tracking"):
        from scripts.tracking import track  # here: mlflow takes seconds to import

        track(str(job.folder), store=settings.get("tracking_store"))
    note = {"network": job.network, "peak_gb": memory, "epochs": epochs}
    with replacing(job.folder / NOTE) as partial:
        partial.write_text(json.dumps(note, indent=1))


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own.

    Raises:
        RuntimeError: the system ended the process, as a rule for its memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError("the system ended the process, as a rule for want of memory") from error


def _epochs(job: Job, dataset_dir: str, output: Path, minutes: float, settings: Mapping[str, Any]) -> int:
    """Epochs of a variant that fit the minutes, measured once and kept, so that all its seeds have the same."""
    file = output / "runs" / "epochs.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    key = ",".join(job.overlays)
    if key not in known:
        known[key] = alone(epochs_for, job.overlays, dataset_dir, minutes, settings)
        with replacing(file) as partial:
            partial.write_text(json.dumps(known, indent=1))
    return known[key]


def epochs_for(overlays: Sequence[str], dataset_dir: str, minutes: float, settings: Mapping[str, Any]) -> int:
    """Epochs whose training steps take the given time.

    Args:
        overlays: of the variant.
        dataset_dir: the prepared dataset, for the number of steps.
        minutes: of training.
        settings: ids of the configuration.

    Returns:
        Whole number of epochs.

    Raises:
        ValueError: not a single epoch fits.
    """
    config = merged(overlays, settings | {"dataset_dir": dataset_dir})
    cases = len(part(dataset_dir, int(config["fold"]), "training"))
    epoch = seconds_per_step(config) * max(1, steps_per_epoch(config, cases)) / 60
    if epoch > minutes:
        raise ValueError(f"One epoch takes {epoch:.2g} minutes, and {minutes:g} are the budget; give more --minutes.")
    return int(minutes / epoch)


def merged(overlays: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that training would have."""
    parser = ConfigParser()
    names = [str(workflows.CONFIGS / f"{name}.yaml") for name in ("inference", "train")]
    parser.read_config([*names, *workflows.overlay_paths(overlays)])
    parser.update({k: v for k, v in settings.items() if not k.startswith("tracking")})
    return parser.get()


def _names(text: str | Sequence[str]) -> list[str]:
    """Names separated by commas; fire turns ``a,b`` into a tuple."""
    parts = text.split(",") if isinstance(text, str) else [str(part) for part in text]
    return [part.strip() for part in parts if part.strip()]


def peak_gb() -> float:
    """Peak memory of this process: of the GPU where it was used, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")  # VmHWM starts anew with the process, which ru_maxrss does not
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) / 2**20 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
