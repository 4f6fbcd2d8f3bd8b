"""`nocturne`, held at a gate until it is killed: `python -m tests.faults.held GATE WORDS…`.

Whoever waits for a moment to kill it can come late: it does not pass.
"""

from __future__ import annotations

import sys
import threading
from typing import Any


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


def _for_ever() -> None:
    threading.Event().wait()


if __name__ == "__main__":
    from flows.cli import main

    hold(sys.argv[1])
    sys.argv = ["nocturne", *sys.argv[2:]]
    main()
