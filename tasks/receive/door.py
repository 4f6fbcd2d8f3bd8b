"""The door of the receive room."""

from __future__ import annotations

from models.refs import StudyVersionRef
from tasks.door import door
from tasks.receive import versions
from tasks.receive.versions import Opened, Outcome
from tasks.stores.house import Stores


@door("open study", run_name="open {version}", minutes=10)
def open_version(stores: Stores, version: StudyVersionRef, run: str) -> Opened:
    """Take a study version up: its instances as a batch, unless it was brought to an end before."""
    return versions.open_version(stores, version, run)


@door("close study", run_name="close {version}: {outcome}", minutes=10, persist=False)
def close_version(stores: Stores, version: StudyVersionRef, outcome: Outcome, detail: str) -> None:
    """Say what became of a study version."""
    versions.close_version(stores, version, outcome, detail)
