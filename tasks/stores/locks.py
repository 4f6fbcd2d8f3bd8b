"""One process at a time, by a lock on a file: the system lets go of it when its process ends, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import NocturneError


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
