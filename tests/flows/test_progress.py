"""How far a run is, told to a server that may be away."""

from __future__ import annotations

import logging

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import progress
from tasks.progress import stage
from tests.components import free_port


@pytest.mark.fault("stores/prefect")
def test_a_server_that_is_away_neither_ends_what_is_shown_nor_is_it_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LAST_SECONDS", 120.0)  # so that its last word is heard, however busy the machine
    caplog.set_level(logging.INFO, "flows.progress")
    away = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: away}), progress.progress_artifacts(), stage("train", 2) as running:
        running.advance(2)
    assert "was not told how far train is" in caplog.text


def test_what_was_done_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from uuid import uuid4

    told: list[tuple[str, float]] = []
    made = uuid4()

    def create(share: float, description: str) -> object:
        told.append((description, share))
        return made

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(progress, "update_progress_artifact", lambda _, progress: told.append(("again", progress)))
    shown = progress._Shown()
    first = shown.begin("train", 4, "steps")
    shown.advance(first, 1, None)
    for _ in range(2):
        shown._tell_all()
    shown.end(first, None)
    shown._tell_all()
    assert told == [("train", 25.0), ("again", 100.0)]
