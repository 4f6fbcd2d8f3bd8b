"""MLflow's server behind a password: HTTP Basic (RFC 7617), as MLflow's clients and browsers speak it.

MLflow is told of it by its plugin group `mlflow.app` (pyproject.toml), and starts it in place of its own app.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from models.errors import SettingsError

AUTH_VARIABLE: Final = "NOCTURNE_MLFLOW_AUTH"
_OPEN_PATH: Final = "/health"
"""Says nothing but that the server runs: who watches over it needs no password."""

_ASKED: Final = [(b"www-authenticate", b'Basic realm="MLflow", charset="UTF-8"'), (b"content-type", b"text/plain")]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """Lets requests through to `app` that bring `credentials` (user:password)."""

    def __init__(self, app: App, credentials: str) -> None:
        self._app, self._credentials = app, credentials.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI hands it over."""
        if scope["type"] == "lifespan" or scope.get("path") == _OPEN_PATH or self._knows(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the server answers 403
        else:
            await send({"type": "http.response.start", "status": 401, "headers": _ASKED})
            await send({"type": "http.response.body", "body": b"user and password are needed\n"})

    def _knows(self, scope: Scope) -> bool:
        for name, value in scope.get("headers", ()):
            kind, _, given = bytes(value).partition(b" ")
            if name.lower() == b"authorization" and kind.lower() == b"basic":
                try:
                    brought = base64.b64decode(given.strip(), validate=True)
                except binascii.Error:
                    return False
                return hmac.compare_digest(brought, self._credentials)
        return False


def tracking() -> Gate:
    """MLflow's app behind the password of the environment. Raises SettingsError where there is none."""
    credentials = os.environ.get(AUTH_VARIABLE, "")
    if ":" not in credentials:
        raise SettingsError("no user:password for MLflow", where=AUTH_VARIABLE, hint="set mlflow_auth")
    from mlflow.server.fastapi_app import app

    return Gate(app, credentials)
