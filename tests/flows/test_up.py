"""`nocturne up`: what is started, and that a setting places a server elsewhere."""

from __future__ import annotations

import configparser
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import health as looking
from flows import servers
from flows.health import health
from flows.services import duration
from flows.up import configuration
from models.errors import SettingsError
from models.hospital import OrthancFeed, Services
from models.settings import Settings


def sections(settings: Settings) -> dict[str, str]:
    read = configparser.ConfigParser(interpolation=None)
    read.read_string(configuration(settings))
    return {n.removeprefix("program:"): read[n]["command"] for n in read.sections() if n.startswith("program:")}


def test_everything_that_is_needed_is_started(tmp_path: Path) -> None:
    found = sections(Settings(home=tmp_path))
    assert list(found) == ["prefect", "mlflow", "deploy", "listener", "relay", "worker", "arrivals"]
    assert found["prefect"].endswith("-m flows run prefect")


@pytest.mark.fault("access/loopback")
def test_servers_listen_on_loopback_and_hide_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(servers.os, "execve", lambda path, command, env: started.append((command, env)))
    settings = Settings(home=tmp_path, tracking_url="postgresql://mlflow:hunter2@db/mlflow")  # type: ignore[arg-type]
    servers.run_prefect(settings, {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"})
    servers.run_mlflow(settings)
    for command, _ in started:
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert "hunter2" not in " ".join(command)
    assert started[1][1]["MLFLOW_BACKEND_STORE_URI"].endswith("hunter2@db/mlflow")


def test_what_lies_elsewhere_is_not_started_and_what_is_watched_is(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        prefect_url="https://prefect.example/api",
        tracking_url="https://mlflow.example",  # type: ignore[arg-type]
        orthanc=(OrthancFeed(name="pacs", url="http://127.0.0.1:8042"),),
    )
    assert list(sections(settings)) == ["deploy", "listener", "watch", "relay", "worker", "arrivals"]


@pytest.mark.fault("access/secrets")
def test_no_password_is_among_the_arguments(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path / "50%",
        tracking_url="postgresql://mlflow:hunter2@db/mlflow",  # type: ignore[arg-type]
        catalog_url="postgresql://nocturne:hunter3@db/n",  # type: ignore[arg-type]
        prefect_auth="nocturne:hunter4",  # type: ignore[arg-type]
    )
    told = configuration(settings)
    assert "hunter" not in told
    assert "/50%%/" in told, "supervisord would take a single % for a variable"


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        return


def test_each_process_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_PATIENCE", 120.0)
    monkeypatch.setattr(looking, "_STALE_SECONDS", 1800.0)
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = Settings(home=tmp_path, services=Services(prefect_port=server.server_port, mlflow_port=1))
    run = tmp_path / "run"
    run.mkdir()

    def sign(name: str, **changes: Any) -> None:
        told = {"pid": os.getpid(), "at": looking.time.time(), "figures": {"received": 1234}, "trouble": ""}
        (run / f"{name}.json").write_text(json.dumps({**told, **changes}))

    sign("listener")
    sign("relay", trouble="deliveries: pacs: refused")
    sign("worker", at=looking.time.time() - 3600)
    sign("arrivals", pid=2**22 + 1)
    told = {one.name: (one.state, one.told) for one in health(settings)}
    server.shutdown()
    assert told["prefect"][0] == "well"
    assert told["mlflow"][0] == "away"
    assert told["listener"] == ("well", "1,234 received")
    assert told["relay"] == ("trouble", "deliveries: pacs: refused")
    assert told["worker"][0] == told["arrivals"][0] == "away"
    assert "ended without notice" in told["arrivals"][1]
    (run / "worker.json").unlink()
    assert {one.name: one.state for one in health(settings)}["worker"] == "not started"


@pytest.mark.parametrize(("text", "minutes"), [("90m", 90), ("12h", 720), ("1d", 1440), ("2w", 20160)])
def test_spans_of_time(text: str, minutes: int) -> None:
    assert duration(text).total_seconds() == 60 * minutes


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1.5h", "1 day"])
def test_other_spans_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="not a span"):
        duration(text)
