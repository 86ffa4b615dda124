"""Takes from this process what a trial does not need: writing outside of one folder, other programs, connections.

By Landlock, which Linux has since 5.13 (connections: since 6.7). Elsewhere nothing is taken.
"""

from __future__ import annotations

import ctypes
import os
import sys

CREATE, ADD, RESTRICT = 444, 445, 446  # system calls, the same on every machine
VERSION, BELOW, NO_NEW_PRIVILEGES = 1, 1, 38
EXECUTE, WRITE, RIGHTS_1 = 1 << 0, 1 << 1, 0b1_1111_1111_0010  # RIGHTS_1: write, remove, make; not read
MOVE, TRUNCATE = 1 << 13, 1 << 14
BIND_AND_CONNECT = 0b11


def confine(work: str) -> bool:
    """Keep this process, and those it starts, from writing elsewhere, running programs and connecting by TCP.

    Args:
        work: the folder in which everything stays allowed.

    Returns:
        Whether this system can do it.
    """
    if not sys.platform.startswith("linux"):
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    version = call(CREATE, None, ctypes.c_size_t(0), VERSION)
    if version < 1:
        return False
    rights = EXECUTE | RIGHTS_1 | (MOVE if version > 1 else 0) | (TRUNCATE if version > 2 else 0)
    asked = (ctypes.c_uint64 * 2)(rights, BIND_AND_CONNECT)
    ruleset = call(CREATE, asked, ctypes.c_size_t(16 if version > 3 else 8), 0)
    if ruleset < 0:
        return False
    allowed = {work: rights & ~EXECUTE, os.devnull: WRITE | (TRUNCATE if version > 2 else 0)}
    done = all(_allow(call, ruleset, path, rule) for path, rule in allowed.items())
    done = done and ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and call(RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return done


class _Below(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _allow(call: ctypes._FuncPointer, ruleset: int, path: str, rights: int) -> bool:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return call(ADD, ruleset, BELOW, ctypes.byref(_Below(rights, folder)), 0) == 0
    finally:
        os.close(folder)
