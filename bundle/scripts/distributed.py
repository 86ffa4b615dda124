"""Training in several processes, one for each GPU (or, with gloo, on CPUs), as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def device() -> torch.device:
    """The device of this process: its own GPU, or the CPU where there is none."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")


def start() -> None:
    """Join the other processes; one that was started alone is a group of one.

    Raises:
        RuntimeError: more processes on this machine than GPUs.
    """
    if distributed.is_initialized():
        return
    own = device()
    if own.type == "cuda":
        if own.index >= torch.cuda.device_count():
            raise RuntimeError(
                f"Process {own.index} found {torch.cuda.device_count()} GPUs. Start one process for each: "
                f"torchrun --nproc_per_node={torch.cuda.device_count()} …"
            )
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
