"""What of an address is logged by Prefect's server, and that the server uses that format."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.environment import client_environment, server_environment
from flows.environment import QUIET
from flows.reticence import ENVIRONMENT, curtailed
from models.settings import Settings


@pytest.mark.fault("access/secrets")
@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("Client error '410 Gone' for url 'https://hooks.example/services/T0/B1/key'", "'https://hooks.example/…'"),
        ("POST http://127.0.0.1:9/?token=key failed", "http://127.0.0.1:9/… failed"),
        ("mailtos://ana:key@mail.example:587?to=b@c.example", "mailtos://mail.example:587/…"),
        ("postgresql+asyncpg://ana:key@db/prefect", "postgresql+asyncpg://db/…"),
        ("ana:key@", "ana:key@"),  # no address: not for this format to know
        ("http://127.0.0.1:4200/", "http://127.0.0.1:4200/"),
        ("Uvicorn running on http://127.0.0.1:4200 (Press CTRL+C to quit)", "http://127.0.0.1:4200 (Press"),
    ],
)
def test_addresses_end_after_their_host(told: str, kept: str) -> None:
    assert kept in curtailed(told)
    assert "key" not in curtailed(told) or told.startswith("ana")


HANDLERS = """
import logging, prefect.main
print(*(type(one).__name__ for name in ("prefect.flow_runs", None) for one in logging.getLogger(name).handlers))
"""


@pytest.mark.parametrize("environment", [QUIET, client_environment(Settings()), server_environment(Settings())])
def test_prefect_takes_what_is_set_of_its_logging(environment: dict[str, str], tmp_path: Path) -> None:
    """Of a setting that it does not understand it says nothing, and a run's page has no logs."""
    answer = subprocess.run(
        [sys.executable, "-c", HANDLERS],
        env={**os.environ, **environment, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == ["APILogHandler", "PrefectConsoleHandler"]


SERVER_SPEAKS = """
import logging
from prefect.logging.configuration import setup_logging
setup_logging()
try:
    raise ValueError("no answer from https://ana:password@hooks.example/services/key?a=1")
except ValueError:
    logging.getLogger("prefect.server.events.actions").exception("told https://hooks.example/services/key")
logging.getLogger("uvicorn.error").error("and https://hooks.example/services/key")
"""


@pytest.mark.fault("access/secrets")
def test_the_server_logs_no_hook(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", SERVER_SPEAKS],
        env={**os.environ, **server_environment(Settings()), **ENVIRONMENT, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "services" not in answer.stderr
    assert "password" not in answer.stderr
    assert answer.stderr.count("hooks.example/…") == 3
    assert "Traceback" in answer.stderr
