"""A manifest comes back as it was published, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from models.dataset import Dataset
from models.errors import IntegrityError, NotFoundError, SchemaError
from tasks.stores.datasets import HEADER, ROWS, DatasetStore
from tests.models.test_dataset import row
from tests.objects import place_url


def dataset() -> Dataset:
    rows = tuple(
        row(patient=f"P-{n}", volume=f"{n:032x}", split="test" if n % 3 else "train", spacing_y=1 / 3 + n)
        for n in range(7)
    )
    return Dataset("livers", "segmentation", ("liver", "Läsion"), rows)


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> DatasetStore:
    return DatasetStore(place_url(request, tmp_path), scratch=tmp_path / "scratch")


def test_round_trip(store: DatasetStore) -> None:
    wanted = dataset()
    ref = store.write(wanted)
    assert ref.key == wanted.key
    assert store.read(ref.key) == wanted
    assert store.write(wanted) == ref
    assert list(store.place.keys()) == [ref.key]


def test_what_is_not_there(store: DatasetStore) -> None:
    with pytest.raises(NotFoundError):
        store.read("f" * 32)


def test_rows_that_break_the_schema_are_not_published(store: DatasetStore) -> None:
    torn = Dataset("x", "segmentation", ("a",), (row(), replace(row(), volume="9" * 32, split="test")))
    with pytest.raises(SchemaError, match="one_split_per_patient"):
        store.write(torn)
    assert list(store.place.keys()) == []


def test_a_changed_manifest_is_not_taken(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    key = store.write(dataset()).key
    folder = store.place.local(key)
    whole = (folder / ROWS).read_bytes()
    frame = pd.read_parquet(folder / ROWS)

    frame.assign(split=frame["split"].replace("test", "train")).to_parquet(folder / ROWS)
    with pytest.raises(IntegrityError, match="hash"):
        store.read(key)
    (folder / ROWS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError):
        store.read(key)
    (folder / ROWS).write_bytes(whole)
    header = json.loads((folder / HEADER).read_text())
    for broken in ({**header, "classes": ["liver"]}, {"name": "x"}, []):
        (folder / HEADER).write_text(json.dumps(broken))
        with pytest.raises(IntegrityError):
            store.read(key)
