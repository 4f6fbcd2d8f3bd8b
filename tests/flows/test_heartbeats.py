"""Runs end when their work does."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import prefect
import pytest
from prefect import flow_engine

from flows.heartbeats import flow


def test_a_run_does_not_wait_for_its_own_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a newer Prefect names it otherwise: see then whether its runs still wait."""
    assert flow is prefect.flow
    waited, given = list[float | None](), threading.Event()
    monkeypatch.setattr(threading.Thread, "join", lambda _, timeout=None: waited.append(timeout))
    run = SimpleNamespace(
        heartbeat_seconds=30,
        flow_run=None,
        logger=SimpleNamespace(debug=lambda *_, **__: None),
        _build_heartbeat_event_template=lambda: ({}, []),
        _emit_flow_run_heartbeat=lambda *_: given.set(),
    )
    with flow_engine._send_heartbeats(run):  # type: ignore[arg-type]
        assert given.wait(60)
    assert waited == []
