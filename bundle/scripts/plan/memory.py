"""Finds the largest patch and batch whose training step fits a stated memory, by running such steps and measuring."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from scripts.compare.running import alone, merged, peak_gb
from scripts.runs import default_device
from scripts.slices import network_patch

CPU_GB, CPU_SECONDS = 4.0, 0.5  # on a CPU, when nothing is said: more would take long to train
STEPS = 2  # AdamW makes its own memory in the first one
BEGIN = 200_000  # voxels of the first step that is tried: well over what a process takes without any
FARTHEST = 6  # times the largest size that fits: further no size is tried next
SPARE = 1.5  # times the limit, and 2 GB: what a process may take before it is refused more, so that no machine stalls
SURE = 1.1  # a size predicted above so many times the limit is not tried


@dataclass(frozen=True)
class Size:
    """How much a training step takes in at once: ``patch``, and ``batch`` (cases)."""

    patch: tuple[int, ...]
    batch: int

    @property
    def voxels(self) -> int:
        """Of a batch with one crop a case."""
        return math.prod(self.patch) * self.batch

    def __str__(self) -> str:
        """Show as ``96 x 64 x 32, batch 2``."""
        return f"{' x '.join(str(n) for n in self.patch)}, batch {self.batch}"


@dataclass(frozen=True)
class Cost:
    """What a training step cost; infinite where the memory of the machine was not enough.

    Attributes:
        gb: peak memory of the process; of the GPU where there is one.
        seconds: of a step; on a CPU those of computing, which other programs do not lengthen.
    """

    gb: float
    seconds: float


@dataclass(frozen=True)
class Limits:
    """What a training step may cost.

    Attributes:
        memory: GB.
        seconds: of a step, or None.
        reason: where the memory comes from.
    """

    memory: float
    seconds: float | None = None
    reason: str = "as you say"

    def __str__(self) -> str:
        """Show in words."""
        return f"{self.memory:g} GB ({self.reason}){f' and {self.seconds:g} s' if self.seconds else ''}"


class Meter:
    """Runs training steps, each size in a process of its own, and remembers what they cost.

    Args:
        overlays: of the network.
        settings: ids of the configuration: classes, channels, strides, …
        memory: the limit, GB.
        progress: tell what each size takes.
    """

    def __init__(
        self, overlays: Sequence[str], settings: Mapping[str, Any], memory: float, *, progress: bool = True
    ) -> None:
        self.overlays, self.settings, self.memory, self.progress = list(overlays), dict(settings), memory, progress
        self.known: dict[Size, Cost] = {}

    def __call__(self, size: Size) -> Cost:
        """Measure a size, unless that was done before."""
        if size not in self.known:
            settings = self.settings | {"patch_size": list(size.patch), "batch_size": size.batch}
            try:
                self.known[size] = Cost(**alone(step_cost, self.overlays, settings, self.memory))
            except RuntimeError as error:
                if "memory" not in str(error):
                    raise
                self.known[size] = Cost(math.inf, math.inf)
            if self.progress:
                cost = self.known[size]
                tqdm.write(f"training step of {size}: {cost.gb:.2f} GB, {cost.seconds:.2f} s")
        return self.known[size]


def step_cost(overlays: Sequence[str], settings: Mapping[str, Any], memory: float = math.inf) -> dict[str, float]:
    """Run training steps on random images in this process: forward, loss, backward, optimiser, averaged weights.

    Args:
        overlays: of the network.
        settings: ids of the configuration, with ``patch_size`` and ``batch_size``.
        memory: GB; a process on a CPU that asks for much more is refused.

    Returns:
        ``gb`` and ``seconds`` of `Cost`; the seconds of the last step.

    Raises:
        RuntimeError: the memory was not enough.
    """
    parser = ConfigParser()
    parser.read_config(merged(overlays, settings))
    get = parser.get_parsed_content
    device = get("device")
    if device.type == "cpu" and math.isfinite(memory):
        resource.setrlimit(resource.RLIMIT_DATA, (int((SPARE * memory + 2) * 2**30),) * 2)
    network, loss = get("network").train(), get("train::loss")
    optimizer, ema = get("train::optimizer"), get("train::ema")
    patch = network_patch(get("patch_size"), get("spatial_dims"))
    image = torch.randn(get("batch_size") * get("crops_per_case"), get("in_channels"), *patch, device=device)
    label = torch.randint(0, get("out_channels"), (len(image), 1, *patch), device=device)
    seconds = 0.0
    for _ in range(STEPS):
        begin = _clock(device)
        with torch.autocast(device.type, enabled=bool(get("amp")), **get("amp_kwargs")):
            value = loss(network(image), label)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(network)
        seconds = _clock(device) - begin
    return {"gb": peak_gb(), "seconds": seconds}


def find_largest(sizes: Sequence[Size], measure: Callable[[Size], Cost], limits: Limits) -> int:
    """Find the last of a list of growing sizes that fits; the smallest where only time speaks against it.

    Memory and time grow about linearly with the voxels, so that a few measurements are enough; the size that is
    returned was itself measured, and fits into the memory.

    Args:
        sizes: from small to large.
        measure: size -> cost.
        limits: of a training step.

    Returns:
        Index of the size.

    Raises:
        ValueError: not even the smallest fits into the memory.
    """
    loads: dict[int, float] = {}
    low, high = -1, len(sizes)
    guess = max((i for i, size in enumerate(sizes) if size.voxels <= BEGIN), default=0)
    while high - low > 1:
        cost = measure(sizes[guess])
        loads[guess] = max(cost.gb / limits.memory, cost.seconds / (limits.seconds or math.inf))
        low, high = (guess, high) if loads[guess] <= 1 else (low, guess)
        fits = [i for i in range(low + 1, high) if _predicted(i, sizes, loads, low) <= 1]
        if not fits and len(loads) > 1 and 0 <= low < high - 1 and _predicted(low + 1, sizes, loads, low) > SURE:
            break
        broke = math.isinf(loads.get(high, 0.0))  # which says nothing of how far beyond the limit that was
        guess = (low + high) // 2 if broke else max(fits, default=low + 1)
    if low < 0:
        cost = measure(sizes[0])
        if cost.gb > limits.memory:
            raise ValueError(
                f"A training step of {sizes[0]} takes {cost.gb:.2f} GB; limit {limits}. "
                "Give more --memory, or choose a smaller network."
            )
    return max(low, 0)


def find_limits(memory: float | None = None, seconds: float | None = None) -> Limits:
    """Limits of a training step: what the user says, or what the machine is made for.

    Args:
        memory: GB; None for 90 % of the GPU's, or half of the machine's, 4 GB at most.
        seconds: of a step; None for 0.5 on a CPU and no limit on a GPU; 0 for no limit.

    Raises:
        ValueError: no such numbers.
    """
    for name, value, least in (("memory", memory, 0.1), ("seconds", seconds, 0.0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < least):
            raise ValueError(f"{name} is {value!r}; expected a number of at least {least:g}.")
    gpu = default_device().type == "cuda"
    step = (None if gpu else CPU_SECONDS) if seconds is None else float(seconds) or None
    if memory is not None:
        return Limits(float(memory), step)
    if gpu:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Limits(round(0.9 * total, 1), step, "90 % of the GPU's")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Limits(round(min(CPU_GB, total / 2), 1), step, f"no GPU: half of the machine's, {CPU_GB:g} GB at most")


def _predicted(index: int, sizes: Sequence[Size], loads: Mapping[int, float], low: int) -> float:
    """Load of a size by the line through the two nearest measurements, or in proportion to the only one."""
    known = sorted((i for i in loads if math.isfinite(loads[i])), key=lambda i: abs(i - index))[:2]
    voxels = sizes[index].voxels
    if not known or (low >= 0 and voxels > FARTHEST * sizes[low].voxels):
        return math.inf
    first = known[0]
    if len(known) < 2:
        return loads[first] * voxels / sizes[first].voxels
    a, b = sorted(known)
    slope = (loads[b] - loads[a]) / (sizes[b].voxels - sizes[a].voxels)
    return loads[a] + max(slope, 0.0) * (voxels - sizes[a].voxels)


def _clock(device: torch.device) -> float:
    """Seconds: of the GPU's work; on a CPU those of all threads, shared out, so that a busy machine does not count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()
