"""An installation for every test of delivery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.components import _orthanc, orthanc  # noqa: F401 - fixtures
from tests.tasks.deliver.installation import Installation, stores_at


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(stores_at(tmp_path / "home"))
    yield made
    made.stores.catalog.close()
