"""Give a written file its final name so that both outlive a power cut, with as few waits for the disk as that takes.

Anywhere: sync the file, rename it, sync the folder: two waits. Ext4 and XFS commit one journal in the order in which
things happened, and flush the disk before each commit; there it is enough that the file's blocks have been written out
before the rename, and one commit, that of the folder, then makes all of it last: blocks, file and name. At no moment
can the name outlive a power cut without the bytes.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

JOURNALLED: Final = frozenset({"ext4", "xfs"})
_MOUNTS = Path("/proc/self/mountinfo")
_LOOSE = {"nobarrier", "barrier=0", "data=writeback"}
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EPERM}
_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_WAIT_WRITE_WAIT = 1 | _WRITE | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER


def publish(descriptor: int, part: Path, target: Path) -> None:
    """Rename `part`, open as `descriptor` and in the folder of `target`, to `target`; both are synced then."""
    if not (_journalled(os.fstat(descriptor).st_dev) and _written_out(descriptor)):
        os.fsync(descriptor)
    part.rename(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make what a folder lists last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_writing(descriptor: int, offset: int, count: int) -> None:
    """Have these bytes of a file written from now on, so that less is left for a sync. Waits for nothing.

    A hint: it makes nothing last, and what goes wrong is told by the sync.
    """
    if (call := _sync_file_range()) is not None:
        call(descriptor, offset, count, _WRITE)


def _written_out(descriptor: int) -> bool:
    """Write the file's blocks and wait for it; False where the system cannot. Raises OSError where the disk fails."""
    call = _sync_file_range()
    if call is None:
        return False
    ctypes.set_errno(0)
    if call(descriptor, 0, 0, _WAIT_WRITE_WAIT) == 0:
        return True
    if (code := ctypes.get_errno()) in _CANNOT:
        return False
    raise OSError(code, os.strerror(code))  # told once: a sync after it would not tell it again


@lru_cache(1)
def _sync_file_range() -> Callable[..., int] | None:
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call  # type: ignore[no-any-return]


@lru_cache(16)
def _journalled(device: int) -> bool:
    """Whether the file system of a device is one of those above, and journals."""
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return False
    found = [line for line in lines if line.split()[2] == name]
    return bool(found) and all(map(_keeps_order, found))


def _keeps_order(mount: str) -> bool:
    system, source, options = mount.partition(" - ")[2].split(" ", 2)
    if system not in JOURNALLED or _LOOSE & set(options.split(",")):
        return False
    # An ext4 file system can be made without its journal.
    return system != "ext4" or Path("/sys/fs/ext4", Path(source).resolve().name, "journal_task").exists()
