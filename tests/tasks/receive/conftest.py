"""A spool and a reception for every receiving test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.pseudonyms import Pseudonymizer
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool


@pytest.fixture
def pseudonymizer() -> Pseudonymizer:
    return Pseudonymizer(b"s" * 32)


@pytest.fixture
def spool(tmp_path: Path, pseudonymizer: Pseudonymizer) -> Spool:
    return Spool(tmp_path / "spool", pseudonymizer)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield opened
    opened.close()


@pytest.fixture
def reception(catalog: Catalog, spool: Spool, pseudonymizer: Pseudonymizer) -> Iterator[Reception]:
    with Reception(catalog, spool, pseudonymizer, source="listener") as opened:
        yield opened
