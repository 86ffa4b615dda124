"""Training and evaluation in several processes, one for each GPU (or, with gloo, on CPUs), started by `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def device() -> torch.device:
    """The device of this process: its own GPU, or the CPU where there is none."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")


def check_gpus() -> None:
    """Refuse to start where there are GPUs, but none for this process, which would compute on the CPU unnoticed.

    Raises:
        RuntimeError: more processes on this machine than GPUs.
    """
    own, count = device(), torch.cuda.device_count()
    if own.type == "cuda" and own.index >= count:
        raise RuntimeError(
            f"Process {own.index} found {count} GPUs. Start one process for each: torchrun --nproc_per_node={count} …"
        )


def start() -> None:
    """Join the other processes; one that was started alone is a group of one.

    Raises:
        RuntimeError: more processes on this machine than GPUs.
    """
    if distributed.is_initialized():
        return
    check_gpus()
    own = device()
    if own.type == "cuda":
        torch.cuda.set_device(own)
    alone = {} if "RANK" in os.environ else {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo", **alone)
    idist.set_local_rank(int(os.environ.get("LOCAL_RANK", 0)))


def follows() -> bool:
    """Whether this process leaves writing and talking to the first one."""
    if "RANK" in os.environ:  # torchrun started several; MONAI finds a bundle's scripts too late for `initialize`
        start()
    return idist.get_rank() > 0


def rank() -> int:
    """Number of this process in the group, which it joins."""
    start()
    return idist.get_rank()


def processes() -> int:
    """Number of processes of the group, which this one joins."""
    start()
    return idist.get_world_size()


def once(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in the first process alone, while the others wait for it.

    Args:
        function: what writes.
        *args: passed on.

    Returns:
        What it returns; None in the other processes.
    """
    result = None if follows() else function(*args)
    idist.barrier()
    return result


def share(cases: Sequence[Any]) -> list[Any]:
    """The cases of this process: every n-th one, so that each is there once, also where they cannot be dealt evenly.

    Args:
        cases: all cases, in the same order in every process.

    Returns:
        At least one case.

    Raises:
        ValueError: fewer cases than processes.
    """
    if len(cases) < processes():
        raise ValueError(f"There are {len(cases)} cases for {processes()} processes; start at most {len(cases)}.")
    return list(cases[rank() :: processes()])


def gathered(own: list[Any]) -> list[Any]:
    """What every process found for its cases, in the order of the cases before `share`; all processes must call it.

    Args:
        own: one plain value for each case of this process.

    Returns:
        The values of all processes, the same in each; in a process that was started alone its own.
    """
    if idist.get_world_size() < 2:
        return own
    parts: list[Any] = [None] * idist.get_world_size()
    distributed.all_gather_object(parts, own)
    return [part[k] for k in range(max(map(len, parts))) for part in parts if k < len(part)]


def parallel(network: nn.Module) -> DistributedDataParallel:
    """Wrap a network so that its gradients are averaged over the processes.

    Args:
        network: on the device of this process; the first process's weights become everybody's.

    Returns:
        The wrapped network, which shares the weights. Parameters without a gradient are allowed: those that embed
        clinical values get none where nothing is known of a patient.
    """
    start()
    own = next(network.parameters()).device
    return DistributedDataParallel(
        network, device_ids=[own] if own.type == "cuda" else None, find_unused_parameters=True
    )


def stop() -> None:
    """Leave the group of processes."""
    if distributed.is_initialized():
        idist.sync()
        idist.finalize()  # ignite forgets the group, too
