"""What tests through several rooms share. Heavy imports wait: most rooms' own tests need none of this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tasks.stores.house import Stores


@pytest.fixture
def house_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[Stores]:
    """An empty installation; what is prepared is prepared here, since a cluster takes longer to start."""
    from tasks.predict.warm import WARM
    from tasks.preprocess import stored
    from tests.tasks.predict.samples import stores_at

    monkeypatch.setattr(stored, "compute_client", lambda *_: nullcontext())
    WARM.forget()
    stores = stores_at(tmp_path)
    yield stores
    stores.catalog.close()
    WARM.forget()
