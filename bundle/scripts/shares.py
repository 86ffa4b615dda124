"""Work dealt out to processes that need not talk to each other: cases or folds, by torchrun or by a Slurm array."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from scripts.distributed import check_gpus

Item = TypeVar("Item")
GPUS = "CUDA_VISIBLE_DEVICES"
# what torchrun tells its processes; another training started inside one of them must not hear it
GROUP = re.compile(
    r"RANK|LOCAL_RANK|GROUP_\w+|ROLE_\w+|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_\w+"
)


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def own_share(text: str | None = None) -> tuple[int, int]:
    """Which share is this process's.

    Args:
        text: ``0/4`` to ``3/4``; nothing: all. The processes that torchrun started deal it out among them.

    Returns:
        Number of the share, from 0, and number of shares.

    Raises:
        ValueError: something else.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", str(text or "0/1").strip())
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(f"The share is {text!r}; expected a number from 0 and how many there are: 0/4, 1/4, 2/4, 3/4.")
    rank, processes = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if launched() else (0, 1)
    return int(found[1]) * processes + rank, int(found[2]) * processes


def share(items: Sequence[Item], own: tuple[int, int]) -> list[Item]:
    """Deal items out; shares differ by one item at most, and may be empty.

    Args:
        items: in the same order in every process.
        own: of `own_share`.

    Returns:
        Every n-th item.

    Example:
        >>> [share("abcde", (k, 2)) for k in (0, 1)]
        [['a', 'c', 'e'], ['b', 'd']]
    """
    number, count = own
    return list(items[number::count])


@contextmanager
def by_itself() -> Iterator[None]:
    """Start processes that belong to no group, as a training of its own does, on this process's own GPU alone.

    Raises:
        RuntimeError: more processes on this machine than GPUs.
    """
    if not launched():
        yield
        return
    check_gpus()
    before = {name: value for name, value in os.environ.items() if GROUP.fullmatch(name) or name == GPUS}
    local, visible = int(before.get("LOCAL_RANK", 0)), before.get(GPUS)
    for name in before:
        del os.environ[name]
    mine = visible.split(",") if visible else None
    os.environ[GPUS] = str(local) if mine is None else mine[local % len(mine)]
    try:
        yield
    finally:
        del os.environ[GPUS]
        os.environ.update(before)
