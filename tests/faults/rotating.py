"""A rotation of the vault's key, held at a gate until it is killed: `python -m tests.faults.rotating HOME GATE`.

It says `here` once it stands at the gate, and does not pass it.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from tasks.stores import keys
from tasks.stores.catalog import Catalog
from tasks.stores.vault import Vault

GATES = ("the key is made", "some are sealed", "all are sealed", "the old key is kept")
RECORDS_PASSED = 700


def hold(gate: str) -> None:
    """From now on nothing in this process gets past `gate`."""
    retire, sealed, resealed, count = keys._retire, keys._sealed_anew, Vault.resealed, iter(range(10**6))

    def held_sealed(*given: Any) -> Any:
        return _for_ever() if gate == GATES[0] else sealed(*given)

    def held_record(self: Vault, row: Any) -> Any:
        if gate == GATES[1] and next(count) == RECORDS_PASSED:
            _for_ever()
        return resealed(self, row)

    def held_retire(*given: Any) -> None:
        if gate == GATES[2]:
            _for_ever()
        retire(*given)
        if gate == GATES[3]:
            _for_ever()

    keys._sealed_anew, Vault.resealed, keys._retire = held_sealed, held_record, held_retire  # type: ignore[method-assign]


def _for_ever() -> Any:
    print("here", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    home = Path(sys.argv[1])
    hold(sys.argv[2])
    keys.rotate(home, Catalog(f"sqlite:///{home / 'catalog.db'}"))
