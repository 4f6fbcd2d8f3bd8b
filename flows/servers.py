"""The two servers of an installation, started with its settings: Prefect's and MLflow's.

Each takes this process's place, so that a service manager sees the server itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from models.settings import Settings


def run_prefect(settings: Settings, environment: Mapping[str, str]) -> NoReturn:
    """Prefect's server with the page, the scheduler and the triggers."""
    services = settings.services
    _become(["prefect", "server", "start", "--host", services.host, "--port", str(services.prefect_port)], environment)


def run_mlflow(settings: Settings) -> NoReturn:
    """MLflow's server over the tracking store of the settings; which may hold a password, so it is no argument."""
    services = settings.services
    store = {
        "MLFLOW_BACKEND_STORE_URI": settings.tracking(),
        "MLFLOW_ARTIFACTS_DESTINATION": str(settings.home / "mlartifacts"),
    }
    place = ["--host", services.host, "--port", str(services.mlflow_port)]
    _become(["mlflow", "server", *place, "--workers", "1"], store)


def _become(module_and_arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    command = [sys.executable, "-m", *module_and_arguments]
    os.execve(sys.executable, command, {**os.environ, **environment})  # noqa: S606 - our own interpreter, no shell
