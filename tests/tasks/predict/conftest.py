from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tasks.predict.warm import WARM
from tasks.stores.house import Stores
from tests.tasks.predict.samples import stores_at


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks want one thread; sums, too, depend on how many share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """An empty installation, and no model loaded."""
    WARM.forget()
    stores = stores_at(tmp_path)
    yield stores
    stores.catalog.close()
    WARM.forget()
