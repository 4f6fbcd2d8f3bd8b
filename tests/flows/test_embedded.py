"""Prefect's embedded server comes up while a command imports what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from flows.commands.shared import ready
ready()
import httpx, psutil
from prefect import flow
from prefect.server.api.server import SubprocessASGIServer
from flows.embedded import embedded_server

@flow
def nothing() -> int:
    return 3

with embedded_server():
    pass
server = SubprocessASGIServer()
if (process := server.server_process) is None:
    print("none")
    raise SystemExit
assert httpx.get(f"{server.api_url}/health").status_code == 200
listening = {c.laddr.ip for c in psutil.Process(process.pid).net_connections("inet") if c.status == "LISTEN"}
assert listening == {"127.0.0.1"}, listening
assert nothing() == 3
assert SubprocessASGIServer().server_process is process
print("one")
"""


def told(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a process that starts the server says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**clean, "NOCTURNE_HOME": str(home), **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_a_flow_finds_the_server_that_was_started(tmp_path: Path) -> None:
    found = told(tmp_path)
    assert found.stdout.split() == ["one"], found.stderr


@pytest.mark.parametrize("said", ["PREFECT_API_URL=http://127.0.0.1:9/api", "PREFECT_SERVER_EPHEMERAL_ENABLED=false"])
def test_none_is_started_where_one_is_named_or_none_is_wanted(tmp_path: Path, said: str) -> None:
    name, _, value = said.partition("=")
    found = told(tmp_path, **{name: value})
    assert found.stdout.split() == ["none"], found.stderr


@pytest.mark.parametrize("damaged", ["its folder is a file", "its database is something else"])
def test_one_that_does_not_start_is_told_with_its_last_words_and_what_to_do(tmp_path: Path, damaged: str) -> None:
    place = tmp_path / "prefect"
    if damaged == "its folder is a file":
        place.write_text("not a folder")
    else:
        place.mkdir()
        (place / "prefect.db").write_text("not a database" * 1000)
    found = told(tmp_path / "home", PREFECT_HOME=str(place))
    assert "ServiceUnavailableError: prefect: Prefect's embedded server does not start: it ended" in found.stderr
    assert str(place) in found.stderr
    assert "PREFECT_API_URL" in found.stderr
    if damaged == "its database is something else":
        assert "file is not a database" in found.stderr


def test_one_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    found = told(tmp_path, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="1")
    assert "does not start: no answer in 1 s" in found.stderr
