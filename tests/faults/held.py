"""`nocturne`, held at a gate until it is killed: `python -m tests.faults.held GATE WORDS…`.

Whoever waits for a moment to kill it can come late: it does not pass. At the gate "locked" somebody else's program
locks the catalog instead, and lets go once the night has told so often enough; "locked soon" waits for shorter times.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

ENOUGH = 2
"""So often is the lock met before it is let go."""
_LOCKING = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], timeout=600, isolation_level=None)
held.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def hold(gate: str) -> None:
    """From now on nothing in this process gets past `gate`."""
    from tasks.stores.catalog import Catalog
    from tasks.stores.registry import Registry
    from tasks.stores.tables import PackageRow, VolumeRow

    add, log = Catalog.add, Registry.log_package

    def held_add(self: Catalog, *rows: Any) -> int:
        kinds = {type(row) for row in rows}
        if gate == "third volume" and VolumeRow in kinds and self.count(VolumeRow) >= 2:
            _for_ever()
        if gate == "package" and PackageRow in kinds:
            _for_ever()
        return add(self, *rows)

    def held_log(self: Registry, *arguments: Any, **named: Any) -> Any:
        if gate == "registration":
            _for_ever()
        return log(self, *arguments, **named)

    Catalog.add, Registry.log_package = held_add, held_log  # type: ignore[method-assign, assignment]


def lock(*, soon: bool) -> None:
    """From the first volume on, the catalog is locked by another process, until that was told `ENOUGH` times."""
    from tasks import retries
    from tasks.stores import catalog
    from tasks.stores.tables import VolumeRow

    if soon:
        catalog.BUSY_SECONDS = 0.2  # type: ignore[assignment]
        retries.RETRY_DELAYS[:] = [0.1] * len(retries.RETRY_DELAYS)
    insert, transaction, translated = catalog.Catalog.insert, catalog.Catalog.transaction, catalog._translated
    seen, alone, told = threading.Event(), threading.Lock(), 0
    locker: list[subprocess.Popen[str]] = []

    def seen_insert(self: Any, session: Any, row: Any) -> int:
        if isinstance(row, VolumeRow):
            seen.set()
        return insert(self, session, row)

    def locked_transaction(self: Any) -> Any:
        with alone:
            if seen.is_set() and not locker:
                command = [sys.executable, "-c", _LOCKING, str(self.url.database)]
                locker.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
                assert locker[0].stdout is not None
                locker[0].stdout.readline()
        return transaction(self)

    def counted(*arguments: Any) -> Exception:
        nonlocal told
        error = translated(*arguments)
        if isinstance(error, catalog.StoreBusyError):
            print(f"told: {error}", flush=True)
            told += 1
            if told == ENOUGH and locker and locker[0].stdin:
                locker[0].stdin.close()
        return error

    catalog.Catalog.insert, catalog.Catalog.transaction = seen_insert, locked_transaction  # type: ignore[method-assign]
    catalog._translated = counted


def _for_ever() -> None:
    threading.Event().wait()


if __name__ == "__main__":
    from flows.cli import main

    if sys.argv[1].startswith("locked"):
        lock(soon=sys.argv[1] == "locked soon")
    else:
        hold(sys.argv[1])
    sys.argv = ["nocturne", *sys.argv[2:]]
    main()
