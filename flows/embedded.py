"""Prefect's embedded server, which a command starts where the settings name none.

It takes seconds to come up, as the packages of a flow do: side by side.
"""

from __future__ import annotations

import atexit
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Final

import httpx
import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, get_current_settings

from flows import reticence
from models.errors import ServiceUnavailableError

_TRIES: Final = 2
"""Another process may take the port between our look and the server's; what ends it twice is something else."""

_POLL_SECONDS: Final = 0.1
_RAISED: Final = re.compile(r"^[\w.]+: .+$", re.MULTILINE)
"""The line of a traceback that names its error; a log's own lines begin with the time."""


class _Server(SubprocessASGIServer):
    """Prefect's, which flows find as theirs; but one that ends while it starts is told at once, with its last words.

    Prefect's own start begins anew without end where the server's database cannot be used, and says nothing.
    """

    def start(self, timeout: int | None = None) -> None:
        """Return when it answers. Raises ServiceUnavailableError where it ends, or does not answer in time."""
        if self.running:
            return
        atexit.register(self.stop)
        seconds = timeout or PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            for _ in range(_TRIES):
                self.port = self.find_available_port()
                self.server_process = process = _launched(self.port, said)
                self.running = _answers(f"{self.api_url}/health", process, time.monotonic() + seconds)
                if self.running:
                    return
                if process.poll() is None:
                    self.stop()
                    raise _does_not_start(f"no answer in {seconds:g} s", said)
            raise _does_not_start(f"it ended with code {process.returncode}", said)


def _launched(port: int, said: IO[str]) -> subprocess.Popen[bytes]:
    """As Prefect starts it, with what it says of errors kept for whoever asks why it ended."""
    here = ["--app-dir", str(prefect.__module_path__.parent), "--factory", "prefect.server.api.server:create_app"]
    listen = ["--host", "127.0.0.1", "--port", str(port), "--lifespan", "on", "--log-level", "error"]
    environment = {
        **os.environ,
        **get_current_settings().to_environment_variables(exclude_unset=True),
        **reticence.ENVIRONMENT,
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *here, *listen], env=environment, stdout=said, stderr=said
    )


def _answers(address: str, process: subprocess.Popen[bytes], deadline: float) -> bool:
    with httpx.Client() as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(address).status_code == httpx.codes.OK:
                    return True
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(_POLL_SECONDS)
    return False


def _does_not_start(how: str, said: IO[str]) -> ServiceUnavailableError:
    said.seek(0)
    raised = _RAISED.findall(said.read())
    words = f"{how}: {reticence.curtailed(raised[-1])}" if raised else how
    return ServiceUnavailableError(
        f"Prefect's embedded server does not start: {words}",
        where="prefect",
        hint=f"look at the disk, the memory and {get_current_settings().home}, where it keeps the histories of runs;"
        " or name a server of your own: PREFECT_API_URL",
    )


@contextmanager
def embedded_server() -> Iterator[None]:
    """Start it while the block imports; when the block has ended it answers. Raises ServiceUnavailableError.

    A flow that is run later finds it there, as if it had started it itself.
    """
    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        yield
        return
    with ThreadPoolExecutor(1, "embedded-server") as pool:
        started = pool.submit(_Server().start)
        yield
    started.result()
