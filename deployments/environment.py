"""What the Prefect server and its clients must find in their environment. What the user has set there is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flows.environment import prefect_home
from models.settings import Settings

HEARTBEAT_SECONDS = 30
"""Prefect takes no less."""

_CONSOLE_LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
_DATABASE_VARIABLES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")


def server_environment(settings: Settings) -> dict[str, str]:
    """For Prefect's server."""
    services, home = settings.services, prefect_home(settings)
    found = _unless_set(
        {
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_API_HOST": services.host,
            "PREFECT_SERVER_API_PORT": str(services.prefect_port),
            # The page asks the API at this address, and notifications link to the page.
            "PREFECT_SERVER_UI_API_URL": settings.prefect(),
            "PREFECT_UI_URL": settings.prefect().removesuffix("/api"),
            # Kept in memory, a restart of the server would crash the runs that hold a limit.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            # SQLite has one writer: wait for it.
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
            "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
            # What waits its turn is not late, and each mark is one more that writes.
            "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "600",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        }
    )
    found[_CONSOLE_LEVEL] = "WARNING"  # its log is what it prints
    if not any(name in os.environ for name in _DATABASE_VARIABLES):
        found["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    if auth := settings.prefect_auth.get_secret_value():
        found["PREFECT_SERVER_API_AUTH_STRING"] = auth
    return found


def client_environment(settings: Settings) -> dict[str, str]:
    """For workers, flow runs and whatever else speaks to the server."""
    found = _unless_set(
        {
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(prefect_home(settings)),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
    )
    found["PREFECT_API_URL"] = settings.prefect()
    # A worker's own warnings belong in its log.
    found[_CONSOLE_LEVEL] = "WARNING"
    if auth := settings.prefect_auth.get_secret_value():
        found["PREFECT_API_AUTH_STRING"] = auth
    return found


@contextmanager
def connected(settings: Settings) -> Iterator[None]:
    """Prefect's clients speak to the server of the settings, whatever was set when Prefect was imported."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    updates: dict[Any, Any] = {PREFECT_API_URL: settings.prefect()}
    if auth := settings.prefect_auth.get_secret_value():
        updates[PREFECT_API_AUTH_STRING] = auth
    with temporary_settings(updates=updates):
        yield


def _unless_set(defaults: Mapping[str, str]) -> dict[str, str]:
    return {name: os.environ.get(name, value) for name, value in defaults.items()}
