"""Tell glibc to keep the memory that large tensors give back."""

from __future__ import annotations

import ctypes
import os
import sys

OPT_OUT = "NNY_KEEP_ALLOCATOR"
CHOICES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # names and numbers of <malloc.h>


def tune_allocator() -> bool:
    """Let the allocator of this process keep and reuse the memory of large tensors.

    By default glibc maps every block above 32 MiB anew and unmaps it when it is freed; the kernel must then clear its
    pages at every use, which costs a training step more than many of its operations do.

    Returns:
        Whether the allocator took the setting: False where it is not glibc's, where the environment variable
        `NNY_KEEP_ALLOCATOR` is set, or where variables `MALLOC_*` or `GLIBC_TUNABLES` already say what to do.

    Example:
        >>> from scripts.networks.speed import tune_allocator
        >>> tune_allocator() in (True, False)
        True
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in (OPT_OUT, *CHOICES)):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl has a mallopt that does nothing, or none
        return False
    libc.mallopt.argtypes, libc.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**26}  # -1: never
    taken = [libc.mallopt(option, value) for option, value in settings.items()]
    return all(taken)
