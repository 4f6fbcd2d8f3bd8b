"""A listener that is killed has lost nothing that it had acknowledged."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.components import free_port, until
from tests.matrix import Figure, Times
from tests.tasks.receive.killing import Killed, listens
from tests.tasks.receive.serve import SECRET


def serve(home: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "tests.tasks.receive.serve", str(home), str(port)]


@pytest.mark.fault("receive/listener-killed")
def test_what_was_acknowledged_survives_kills_at_random_moments(tmp_path: Path, times: Times, figure: Figure) -> None:
    kills = times(5, full=50)
    acknowledged, lost = Killed(tmp_path, serve, SECRET).run(kills, 2)
    figure(f"{kills} kills, {acknowledged} acknowledged, {lost} lost")
    assert lost == 0
    assert acknowledged >= kills * 4
    assert not [path for path in tmp_path.rglob("*.dcm") if path.stat().st_size < 1000]


def test_a_listener_that_is_told_to_stop_ends_by_itself(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(serve(tmp_path, port), stderr=subprocess.PIPE)
    try:
        until(lambda: listens(port) or process.poll() is not None, "the listener to run")
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=180)
        assert process.returncode == 0, told.decode()
    finally:
        process.kill()
        process.wait()
