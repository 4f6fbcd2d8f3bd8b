"""What MLflow's gate lets through, and that its password is no argument of a process."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from flows import servers
from flows.gate import AUTH_VARIABLE, Gate, tracking
from models.errors import SettingsError
from models.settings import Settings

KNOWN = "ana:pässword:with colon"


def through(auth: str | bytes = "", *, kind: str = "http", path: str = "/version") -> list[Any]:
    """What is sent to one request: `"in"` where the app behind the gate has answered it."""
    sent: list[Any] = []

    async def app(scope: object, receive: object, send: object) -> None:
        sent.append("in")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("status") or message["type"])

    async def receive() -> MutableMapping[str, Any]:
        return {}

    value = auth.encode() if isinstance(auth, str) else auth
    scope = {"type": kind, "path": path, "headers": [(b"Authorization", value)] if auth else []}
    asyncio.run(Gate(app, KNOWN)(scope, receive, send))
    return sent


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@pytest.mark.fault("access/loopback")
@pytest.mark.parametrize(
    "auth",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        b"Basic \xff\xfe",
        basic(""),
        basic(":"),
        basic("ana"),
        basic("ana:"),
        basic(KNOWN + " "),
        basic(KNOWN.upper()),
        "Bearer " + basic(KNOWN).removeprefix("Basic "),
        KNOWN,
    ],
)
def test_without_the_password_nothing_is_let_in(auth: str | bytes) -> None:
    assert through(auth) == [401, "http.response.body"]
    assert through(auth, kind="websocket") == ["websocket.close"]


def test_with_the_password_everything_is() -> None:
    assert through(basic(KNOWN)) == ["in"]
    assert through(basic(KNOWN).replace("Basic", "basic")) == ["in"]
    assert through(basic(KNOWN), kind="websocket") == ["in"]


def test_only_its_health_is_open() -> None:
    assert through(path="/health") == ["in"]
    assert through(kind="lifespan") == ["in"]
    for path in ("/health/", "/healthy", "//health", "/", "/static-files/index.html"):
        assert through(path=path)[0] == 401, path


@pytest.mark.fault("access/loopback")
@pytest.mark.parametrize("credentials", ["", "ana"])
def test_it_does_not_open_without_a_password(credentials: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTH_VARIABLE, credentials)
    with pytest.raises(SettingsError, match=AUTH_VARIABLE):
        tracking()


@pytest.mark.fault("access/secrets")
def test_the_password_is_in_the_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(servers.os, "execve", lambda path, command, env: started.append((command, env)))
    monkeypatch.setattr(servers, "entry_points", lambda **asked: asked)
    servers.run_mlflow(Settings(home=tmp_path, mlflow_auth=KNOWN))  # type: ignore[arg-type]
    ((command, environment),) = started
    assert command[-2:] == ["--app-name", "nocturne"]
    assert environment[AUTH_VARIABLE] == KNOWN
    assert "password" not in " ".join(command)


def test_an_installation_without_the_plugin_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "entry_points", lambda **asked: ())
    with pytest.raises(SettingsError, match="install Nocturne again"):
        servers.run_mlflow(Settings(home=tmp_path, mlflow_auth=KNOWN))  # type: ignore[arg-type]
