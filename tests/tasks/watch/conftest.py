from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.stores.house import Stores
from tests.tasks.predict.samples import stores_at


@pytest.fixture(autouse=True)
def steady(one_thread: None) -> None:
    """Every test here computes in one thread."""


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """An empty installation."""
    stores = stores_at(tmp_path)
    yield stores
    stores.catalog.close()
