"""Small networks want one thread: more would spend their time waiting for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def steady(one_thread: None) -> None:
    """Every test here computes in one thread."""
