"""What a process has of its installation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.environment import open_stores
from models.settings import Settings


def test_a_process_opens_its_stores_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Settings(home=tmp_path / "here")
    stores = open_stores(here)
    assert open_stores(Settings(home=tmp_path / "here")) is stores, "each would keep connections of its own"
    elsewhere = open_stores(Settings(home=tmp_path / "elsewhere"))
    assert elsewhere.locations.home == tmp_path / "elsewhere"
    assert open_stores(here).locations == stores.locations
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    again = open_stores(here)
    assert again is not stores, "connections are not for a process that was forked"
    assert again is open_stores(here)
