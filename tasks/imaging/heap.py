"""Memory that goes round while a network goes from tile to tile, or from step to step, on a CPU.

glibc takes every large block afresh from the kernel and gives it back when it is freed. A tile's or a batch's feature
maps are such blocks, the same each time, and the kernel clears them each time: up to 40 % of a tile's CPU time, a tenth
of a step's. The values that a network computes do not depend on it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
# What glibc's own thresholds come to in a process that has freed one large block.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}

_lock, _users = Lock(), 0


@contextmanager
def kept_memory(device_type: str) -> Iterator[None]:
    """Freed blocks stay with the process, for the next tile or step; the last to leave gives them back to the kernel.

    Does nothing for other devices, and where there is no glibc. In threads whose blocks are not on the program's own
    heap, glibc goes on asking the kernel.
    """
    libc = _glibc() if device_type == "cpu" else None
    if libc is None:
        yield
        return
    _change(libc, 1)
    try:
        yield
    finally:
        _change(libc, -1)


def give_back() -> None:
    """What was freed goes back to the kernel, where there is glibc."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _change(libc: ctypes.CDLL, by: int) -> None:
    global _users
    with _lock:
        before, _users = _users, _users + by
        if before == 0:
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        elif _users == 0:
            for what, value in _USUAL.items():
                libc.mallopt(what, value)
            libc.malloc_trim(0)


@lru_cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version") else None
