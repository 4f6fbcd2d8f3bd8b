"""The two servers of an installation, started with its settings: Prefect's and MLflow's.

Each takes this process's place, so that a service manager sees the server itself. None listens beyond loopback
without a password.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import NoReturn

from flows import reticence
from flows.gate import AUTH_VARIABLE
from models.addresses import is_loopback
from models.errors import SettingsError
from models.settings import Settings
from tasks.stores.tracking import make_database

_PREFECT_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
_APP = "nocturne"
"""`flows.gate`, by its name among MLflow's plugins."""


def run_prefect(settings: Settings, environment: Mapping[str, str]) -> NoReturn:
    """Prefect's server with the page, the scheduler and the triggers. Raises SettingsError."""
    guarded(settings, "prefect")
    services = settings.services
    words = ["flows.prefect_server", "server", "start", "--host", services.host, "--port", str(services.prefect_port)]
    _become(words, {**reticence.ENVIRONMENT, **environment})


def run_mlflow(settings: Settings) -> NoReturn:
    """MLflow's server over the tracking store of the settings; which may hold a password, so it is no argument.

    Raises SettingsError.
    """
    guarded(settings, "mlflow")
    services = settings.services
    environment = {
        "MLFLOW_BACKEND_STORE_URI": settings.tracking(),
        "MLFLOW_ARTIFACTS_DESTINATION": str(settings.home / "mlartifacts"),
    }
    arguments = ["--host", services.host, "--port", str(services.mlflow_port), "--workers", "1"]
    if auth := settings.mlflow_auth.get_secret_value():
        if not entry_points(group="mlflow.app", name=_APP):
            raise SettingsError(
                "MLflow does not know how to ask for a password", where="mlflow_auth", hint="install Nocturne again"
            )
        arguments += ["--app-name", _APP]
        environment[AUTH_VARIABLE] = auth
        # MLflow refuses names that it does not know, lest another site's page in a browser of this network asks it
        # under a name of its own. Such a page has no password.
        environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS", "*")
    make_database(settings.tracking())  # MLflow itself could be killed while it does
    _become(["mlflow", "server", *arguments], environment)


def guarded(settings: Settings, server: str) -> None:
    """Raises SettingsError where `prefect` or `mlflow` would be open to other machines without a password."""
    host = settings.services.host
    auth = settings.prefect_auth if server == "prefect" else settings.mlflow_auth
    known = auth.get_secret_value() or (server == "prefect" and os.environ.get(_PREFECT_AUTH))
    if not known and not is_loopback(host):
        raise SettingsError(
            f"{server} would listen on {host} without a password",
            where="services.host",
            hint=f"set {server}_auth to user:password, or leave it on 127.0.0.1 behind a proxy that asks for one",
        )


def _become(module_and_arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    command = [sys.executable, "-m", *module_and_arguments]
    os.execve(sys.executable, command, {**os.environ, **environment})  # noqa: S606 - our own interpreter, no shell
