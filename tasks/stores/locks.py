"""One process at a time, by a lock on a file: the system lets go of it when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import NocturneError

_LOCKS = Path("/proc/locks")


@contextmanager
def held(path: Path, refusal: NocturneError | None = None) -> Iterator[None]:
    """Alone with `path`, whose folder is made. Waits for another process, or raises `refusal`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            if refusal is None:
                raise
            raise refusal from None
        yield


def who_holds(database: Path) -> str:
    """Who has an SQLite database locked, and what to do about it."""
    # It locks the database itself, or, with a write-ahead log, the index beside it.
    found = [name for path in (database, database.with_name(f"{database.name}-shm")) for name in holders(path)]
    if found:
        return f"{' and '.join(dict.fromkeys(found))} holds {database.name}: let it finish, or end it"
    return f"a backup, a database browser or a shell may have {database.name} open: `fuser -v` on it names who"


def holders(file: Path) -> list[str]:
    """Who holds a lock on bytes of `file` for writing, as "name (process 17)"; empty where the system does not tell."""
    try:
        about = file.stat()
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    place = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    # "17: POSIX  ADVISORY  WRITE 4711 fd:00:131 120 120"; a "->" marks those that wait.
    told = [words for line in lines if "->" not in (words := line.split())]
    return [_named(int(words[4])) for words in told if words[3] == "WRITE" and words[5] == place]


def _named(process: int) -> str:
    try:
        name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        name = "somebody else's program"
    return f"{name} (process {process})"
