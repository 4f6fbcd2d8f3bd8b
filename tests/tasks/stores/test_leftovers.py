"""What killed processes leave goes once it is old; what is of use, or being written, stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from models.errors import StoreBusyError
from tasks.stores.house import Stores
from tasks.stores.leftovers import DAY, GIVEN_UP, sweep_leftovers
from tasks.stores.locks import held
from tasks.stores.places import parts_of, write_synced
from tasks.stores.tables import DatasetRecord, PackageRow
from tests.tasks.deliver.installation import stores_at

PART = f".facts.npz.{'0a' * 16}"


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return stores_at(tmp_path / "home")


def write(path: Path, age: float = 2 * DAY) -> Path:
    """A file, written so many seconds ago, in a folder as old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half of")
    then = time.time() - age
    for one in (path, path.parent):
        os.utime(one, (then, then))
    return path


def test_old_leftovers_go_and_new_ones_stay(stores: Stores) -> None:
    prepared, work = stores.prepared.root, stores.workspace
    old = [write(root / ".facts" / "aa" / PART) for root in (prepared, work)]
    new = [write(root / ".facts" / "bb" / PART, age=60) for root in (prepared, work)]
    kept = write(prepared / ".facts" / "aa" / "facts.npz")
    staged = write(prepared / ".staging" / "ff" / "zarr.json").parent
    assert sweep_leftovers(stores) == 3
    assert [path.exists() for path in (*old, *new, kept, staged)] == [False, False, True, True, True, False]


def test_a_dataset_without_a_row_goes(stores: Stores) -> None:
    for key in ("da-known", "da-unknown"):
        write(stores.locations.home / "datasets" / "da" / key / "rows.parquet")
    stores.catalog.add(DatasetRecord(dataset="da-known", name="liver", kind="segmentation", classes=[], counts={}))
    assert sweep_leftovers(stores) == 1
    assert list(stores.datasets.place.keys()) == ["da-known"]


def test_checkpoints_of_what_is_over_go(stores: Stores) -> None:
    files = {
        name: write(stores.workspace / "train" / name / "checkpoints" / "step-1.json", age)
        for name, age in (("done", 60), ("interrupted", 2 * DAY), ("given-up", 2 * GIVEN_UP), ("busy", 2 * GIVEN_UP))
    }
    stores.catalog.add(
        DatasetRecord(dataset="d", name="liver", kind="segmentation", classes=[], counts={}),
        PackageRow(package="done", name="liver", dataset="d", weights_sha256="0" * 64),
    )
    for name in ("done", "given-up"):
        then = time.time() - 2 * GIVEN_UP
        os.utime(stores.workspace / "train" / name, (then, then))
    with held(stores.workspace / "train" / "busy" / "lock", StoreBusyError("another one has it")):
        sweep_leftovers(stores)
    assert {name for name, file in files.items() if file.exists()} == {"interrupted", "busy"}


def test_what_was_begun_of_one_file_is_found(tmp_path: Path) -> None:
    file = tmp_path / "1.2.3.dcm"
    write_synced(file, b"whole")
    assert parts_of(file) == []
    part = write(tmp_path / f".1.2.3.dcm.{'1b' * 16}")
    write(tmp_path / f".1.2.30.dcm.{'1b' * 16}")
    assert parts_of(file) == [part]
