"""What killed processes left behind, and nobody will take up again: removed once it is old.

Stores whose things have catalog rows are swept by `Place.sweep`, with what the rows name. Here is the rest: half-made
datasets and prepared cases, files that were being written, and checkpoints of trainings that are over or given up.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from models.errors import StoreBusyError
from tasks.stores.house import Stores
from tasks.stores.locks import held
from tasks.stores.places import age_of, sweep_parts
from tasks.stores.tables import DatasetRecord, PackageRow

DAY: Final = 24 * 3600.0
GIVEN_UP: Final = 30 * DAY
"""A training that nobody has taken up for so long is not going to be: its recipe or its data have changed."""

_LOCK: Final = "lock"


def sweep_leftovers(stores: Stores, *, older_than_seconds: float = DAY, given_up_seconds: float = GIVEN_UP) -> int:
    """Remove them; returns how many things went. Raises TransientError where the catalog or a store is away."""
    known = {row.dataset for row in stores.catalog.find(DatasetRecord)}
    gone = stores.datasets.place.sweep(known, older_than_seconds=older_than_seconds)
    # A prepared case has no row: it can be made again, and whichever are there are kept.
    gone += stores.prepared.sweep(frozenset(stores.prepared.keys()), older_than_seconds=older_than_seconds)
    for hidden in stores.prepared.root.glob(".*"):
        gone += sweep_parts(hidden, older_than_seconds=older_than_seconds)
    if stores.workspace.is_dir():
        gone += sweep_parts(stores.workspace, older_than_seconds=older_than_seconds)
        gone += _trainings(stores, given_up_seconds)
    if stores.locations.spool.is_dir():
        stores.spool.sweep()
    return len(gone)


def _trainings(stores: Stores, given_up_seconds: float) -> Iterator[str]:
    """Their folders are emptied but for the lock, which somebody may be waiting for."""
    done = {row.package for row in stores.catalog.find(PackageRow)}
    for folder in (stores.workspace / "train").glob("*"):
        left = [entry for entry in folder.iterdir() if entry.name != _LOCK]
        if not left or (folder.name not in done and _untouched(folder) < given_up_seconds):
            continue
        try:
            with held(folder / _LOCK, StoreBusyError("is being trained", where=folder.name)):
                for entry in left:
                    shutil.rmtree(entry, ignore_errors=True)
        except StoreBusyError:
            continue
        yield folder.name


def _untouched(folder: Path) -> float:
    """Seconds since anything in a folder was changed."""
    return min((age_of(path) for path in (folder, *folder.rglob("*")) if path.name != _LOCK), default=0.0)
