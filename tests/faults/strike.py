"""A process that ends itself by SIGKILL at a chosen change to its home folder: a moment that no machine's speed moves.

What outlives a killed process is what it has told the system: files opened for writing, made, renamed and removed, and
transactions committed. All of these are counted, in every process of the group; with the n-th, the whole group goes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

PLAN = "TESTS_STRIKE"
"""Where other processes of the group find theirs."""
_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Strike:
    """Die `delay` seconds into the change number `at` (0: never) below `home`; `tally` holds a byte for each change."""

    home: str
    tally: str
    at: int = 0
    delay: float = 0.0

    def arm(self) -> None:
        """From now on, in this process."""
        blow = _Blow(self)
        sys.addaudithook(blow.heard)
        event.listen(Engine, "commit", blow.committing)

    def arm_all(self) -> None:
        """Also in the processes that this one will start, and that have `dask_setup` below called."""
        import dask

        Path(self.tally).write_bytes(b"")
        os.environ[PLAN] = "\n".join((self.home, self.tally, str(self.at), repr(self.delay)))
        dask.config.set({"distributed.worker.preload": [__name__]})
        self.arm()


def dask_setup(worker: Any) -> None:
    """Called by Dask in a new worker."""
    home, tally, at, delay = os.environ[PLAN].split("\n")
    Strike(home, tally, int(at), float(delay)).arm()


class _Blow:
    def __init__(self, strike: Strike) -> None:
        self._strike = strike
        self._tally = os.open(strike.tally, os.O_WRONLY | os.O_APPEND)

    def heard(self, name: str, about: tuple[Any, ...]) -> None:
        if (name in _CHANGES or (name == "open" and _to_write(about))) and self._at_home(about[0]):
            self.count()

    def committing(self, connection: Any) -> None:
        self.count()

    def count(self) -> None:
        os.write(self._tally, b".")
        if 0 < self._strike.at <= os.fstat(self._tally).st_size:  # others may have counted meanwhile
            if self._strike.delay:
                threading.Thread(target=self._fall, daemon=True).start()
            else:
                self._fall()

    def _fall(self) -> None:
        time.sleep(self._strike.delay)
        os.killpg(0, signal.SIGKILL)

    def _at_home(self, place: Any) -> bool:
        return isinstance(place, str | bytes | os.PathLike) and os.fsdecode(place).startswith(self._strike.home)


def _to_write(about: tuple[Any, ...]) -> bool:
    flags = about[2]
    return isinstance(flags, int) and bool(flags & _WRITING)
