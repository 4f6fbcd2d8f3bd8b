"""Processes that run all the time: what heals is tried again, what does not ends the process, and one is alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from flows.rounds import Rounds, alone
from models.errors import ServiceUnavailableError, SettingsError
from tasks.stores.heartbeats import signs
from tests.components import DEADLINE_SECONDS, until


def test_what_heals_is_told_and_tried_again(tmp_path: Path) -> None:
    rounds, back = Rounds(tmp_path, "relay"), threading.Event()

    def job() -> int:
        if not back.is_set():
            raise ServiceUnavailableError("the server is away", where="pacs")
        return 5

    rounds.every(0.01, "events", job)
    running = threading.Thread(target=rounds.run)
    running.start()
    until(lambda: any(sign.trouble == "events: pacs: the server is away" for sign in signs(tmp_path)), "the trouble")
    back.set()
    until(
        lambda: any(sign.figures.get("events", 0) >= 5 and not sign.trouble for sign in signs(tmp_path)), "five events"
    )
    rounds.stop.set()
    running.join(timeout=DEADLINE_SECONDS)
    assert signs(tmp_path) == [], "ended in order: no sign of life is left to look like a crash"


def test_a_fault_of_ours_ends_the_process_and_leaves_its_sign(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, "relay")
    rounds.every(0.01, "events", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        rounds.run()
    assert [sign.name for sign in signs(tmp_path)] == ["relay"]


@pytest.mark.fault("stores/two")
def test_two_of_a_name_do_not_run_on_one_home(tmp_path: Path) -> None:
    with alone(tmp_path, "listener"):
        with pytest.raises(SettingsError, match="another process") as refused, alone(tmp_path, "listener"):
            pass
        assert refused.value.reason == "runs-already"
        with alone(tmp_path, "relay"):
            pass
    with alone(tmp_path, "listener"):
        pass
