"""What a variant costs: parameters, multiply-accumulates, memory, seconds for a step and for a case."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from scripts.catalogue import count_macs
from scripts.compare.collect import Run
from scripts.slices import network_patch

COLUMNS = ("parameters_m", "gmacs", "peak_gb", "step_s", "case_s", "train_min", "epochs")


def costs(runs: Sequence[Run]) -> dict[str, float | None]:
    """Costs of one variant, medians over its seeds.

    Args:
        runs: the runs of the variant.

    Returns:
        ``parameters_m`` (millions), ``gmacs`` (one patch), ``peak_gb`` (of the training process; of GPU memory where
        there is one), ``step_s`` (training), ``case_s`` (reading to saved mask), ``train_min`` (wall time),
        ``epochs``. None where a run does not say.
    """
    rows = [_one(run) for run in runs]
    found: dict[str, float | None] = {}
    for name in COLUMNS:
        known = [row[name] for row in rows if row.get(name) is not None]
        found[name] = float(statistics.median(known)) if known else None
    return found | {"gmacs": macs(runs[0].config)}


def _one(run: Run) -> dict[str, float | None]:
    log, seconds = run.files.log, None
    parameters = run.files.versions.get("parameters")
    if log is not None and "seconds" in log:
        validated = log["val_dice"].notna() if "val_dice" in log else np.zeros(len(log), bool)
        plain = log.loc[~validated, "seconds"] if not validated.all() else log["seconds"]
        steps = steps_per_epoch(run.config, len(run.files.datalist.get("training", [])))
        seconds = float(plain.median()) / steps if steps else None
    return {
        "parameters_m": None if parameters is None else parameters / 1e6,
        "peak_gb": run.note.get("peak_gb"),
        "step_s": seconds,
        "case_s": run.calibration.get("seconds_per_case"),
        "train_min": None if log is None or "seconds" not in log else float(log["seconds"].sum()) / 60,
        "epochs": None if log is None else float(log["epoch"].max()),
    }


def steps_per_epoch(config: Mapping[str, Any], cases: int) -> int:
    """Optimiser steps of an epoch: as many as the protocol names, else those that all training cases make.

    Args:
        config: merged training configuration.
        cases: number of training cases.
    """
    named = (config.get("train") or {}).get("epoch_steps")
    batch = config.get("batch_size")
    return named if isinstance(named, int) else cases // (batch if isinstance(batch, int) else 1)


def macs(config: Mapping[str, Any]) -> float | None:
    """Multiply-accumulates of a run's network for one patch, image only.

    Args:
        config: the run's merged configuration.

    Returns:
        1e9; None for a run without a configuration, or a network that cannot be built or traced here.
    """
    if "network_def" not in config:
        return None
    parser = _parser(config)
    try:
        network = parser.get_parsed_content("network_def").eval()
        patch = network_patch(parser.get_parsed_content("patch_size"), parser.get_parsed_content("spatial_dims"))
        return count_macs(network, (parser.get_parsed_content("in_channels"), *patch))
    except (RuntimeError, ValueError, ImportError):  # an operator without a meta kernel, a class of another version
        return None


def seconds_per_step(config: Mapping[str, Any], *, rounds: int = 3) -> float:
    """Median time of a step as training makes it: crops of cached cases, augmentation, forward, loss, backward, update.

    Where processes of their own load (``num_workers``), loading does not count.

    Args:
        config: merged training configuration.
        rounds: steps that are timed, after one that warms up.

    Returns:
        Seconds.

    Raises:
        ValueError: fewer training cases than one batch.
    """
    cases = _parser(config).get_parsed_content("train::dataset::data")
    parser = _parser(config)
    get = parser.get_parsed_content
    batch_size, waits = get("batch_size"), get("num_workers") == 0
    if len(cases) < batch_size:
        raise ValueError(f"{len(cases)} training cases are less than a batch of {batch_size}; give a smaller one.")
    parser.update({"train::dataset::data": list(cases[: (rounds + 1) * batch_size]), "num_workers": 0})
    network, loss, optimizer = get("network").train(), get("train::loss"), get("train::optimizer")
    loader, prepare, device = get("train::dataloader"), get("prepare_batch"), get("device")
    times: list[float] = []
    batches = chain.from_iterable(repeat(loader))
    while len(times) <= rounds:
        begin = time.perf_counter()
        batch = next(batches)
        if not waits:
            begin = time.perf_counter()
        image, label, *more = prepare(batch, device)
        arguments, named = more or ((), {})
        with torch.autocast(device.type, enabled=bool(get("amp")), **get("amp_kwargs")):
            value = loss(network(image, *arguments, **named), label)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def _parser(config: Mapping[str, Any]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(dict(config))
    return parser
