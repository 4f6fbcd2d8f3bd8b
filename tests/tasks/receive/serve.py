"""A listener in a process of its own, to be killed: `python -m tests.tasks.receive.serve HOME PORT [JSON]`."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from models.hospital import Listener as Settings
from models.pseudonyms import Pseudonymizer
from tasks.receive.listener import Listener
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool

SECRET = b"s" * 32


def main(home: Path, port: int, more: str = "{}") -> None:
    """Recover, listen, and wait for a signal."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    settings = Settings.model_validate({"port": port, "free_bytes": 0} | json.loads(more))
    names = Pseudonymizer(SECRET)
    catalog = Catalog(f"sqlite:///{home / 'catalog.db'}")
    with Reception(catalog, Spool(home / "spool", names), names, source="listener") as reception:
        reception.recover()
        with Listener(settings, reception, catalog, names):
            while not told:  # a wait without end can miss a signal that comes as it begins
                time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
