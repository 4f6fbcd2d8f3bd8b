"""One real Prefect server for all tests here, as an installation starts it, and real workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.settings import Settings
from tests.components import DEADLINE_SECONDS, free_port, until

STARTUP_SECONDS = 300.0
_FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Served:
    """A Prefect server, as the settings of an installation name it, and what tests ask of it."""

    settings: Settings
    folder: Path
    environment: dict[str, str]

    @property
    def api(self) -> str:
        return self.settings.prefect()

    def post(self, path: str, json: Any) -> Any:
        return self._asked("POST", path, json=json)

    def get(self, path: str, **parameters: str) -> Any:
        return self._asked("GET", path, params=parameters)

    def delete(self, path: str) -> None:
        self._asked("DELETE", path)

    def _asked(self, method: str, path: str, **options: Any) -> Any:
        answer = self.answered(method, path, **options)
        assert answer.is_success or (method == "DELETE" and answer.status_code == 404), answer.text
        return answer.json() if answer.content and answer.is_success else None

    def answered(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The server's answer. One that its SQLite was too busy to give is asked for again, as Prefect's clients do."""

        def answered() -> httpx.Response | None:
            found = httpx.request(method, f"{self.api}{path}", timeout=120, **options)
            return None if found.status_code == 503 else found

        end = time.monotonic() + DEADLINE_SECONDS
        while (answer := answered()) is None:
            assert time.monotonic() < end, f"{method} {path}: no answer but 503"
            time.sleep(0.2)
        return answer

    def emit(self, key: str) -> None:
        """The event that the relay posts for a study version."""
        event = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "nocturne.study.arrived",
            "resource": {"prefect.resource.id": f"nocturne.study.{key}"},
            "payload": {"version": {"key": key}},
        }
        self.post("/events", [event])

    def start(self, deployment: str, **parameters: Any) -> str:
        """A run by hand; returns its id."""
        flow, _, name = deployment.partition("/")
        found = self.get(f"/deployments/name/{flow}/{name}")
        return str(self.post(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"])

    def run(self, run: str) -> dict[str, Any]:
        return dict(self.get(f"/flow_runs/{run}"))

    def states(self, run: str) -> list[str]:
        """The names of all states it was in."""
        return [state["name"] for state in self.get("/flow_run_states/", flow_run_id=run)]

    def runs_of(self, key: str) -> list[dict[str, Any]]:
        """All runs for a study version."""
        found = self.post("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 200})
        return [run for run in found if (run["parameters"].get("version") or {}).get("key") == key]

    def await_state(self, run: str, *names: str) -> dict[str, Any]:
        """The run, once it is in one of these states; another final state fails the test."""

        def there() -> dict[str, Any] | None:
            found = self.run(run)
            if found["state_name"] in names:
                return found
            assert found["state_type"] not in _FINAL or found["state_type"] == "CRASHED", found["state"]
            return None

        return dict(until(there, f"{' or '.join(names)} (was {self.states(run)})"))

    def seen(self, key: str) -> list[tuple[int, str]]:
        """(process, type of the parameter) of each time that the stand-in flow ran for a version."""
        file = self.folder / f"{key}.seen"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(pid), kind) for pid, kind in (line.split() for line in lines)]

    @contextmanager
    def worker(self, kind: str, *, grace: float = 20.0) -> Iterator[subprocess.Popen[bytes]]:
        """A worker of ours, `arrivals` or `worker`, in a process group of its own."""
        with (self.folder / f"{kind}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.deployments.work", kind, str(grace)],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=DEADLINE_SECONDS)

    @contextmanager
    def spoken_to(self) -> Iterator[None]:
        """Flows that are called here run on this server, and leave nothing elsewhere."""
        from prefect.settings import (
            PREFECT_HOME,
            PREFECT_LOCAL_STORAGE_PATH,
            PREFECT_LOGGING_TO_API_ENABLED,
            temporary_settings,
        )

        from deployments.environment import connected

        updates = {
            PREFECT_HOME: self.folder / "prefect",
            PREFECT_LOCAL_STORAGE_PATH: self.folder / "prefect" / "storage",
            PREFECT_LOGGING_TO_API_ENABLED: False,
        }
        with connected(self.settings), temporary_settings(updates=updates):
            yield


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    port = free_port()
    settings = Settings(home=folder / "home", services={"prefect_port": port})
    (folder / "home" / "prefect").mkdir(parents=True)
    from deployments.environment import client_environment, server_environment

    environment = {
        **os.environ,
        **client_environment(settings),
        "NOCTURNE_HOME": str(settings.home),
        "NOCTURNE_SERVICES__PREFECT_PORT": str(port),
        "NOCTURNE_TEST_FOLDER": str(folder),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    start = ("-m", "flows.prefect_server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            (sys.executable, *start),
            env={**environment, **server_environment(settings)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: answers(settings.prefect(), server), "the Prefect server's answer", STARTUP_SECONDS)
        yield Served(settings, folder, environment)
    finally:
        end(server)


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves must not be found by the next one's watchdog."""
    yield
    if "served" in request.fixturenames:
        served: Served = request.getfixturevalue("served")
        found = served.post("/flow_runs/filter", {"limit": 200})
        for run in (run for run in found if not run["auto_scheduled"]):
            served.delete(f"/flow_runs/{run['id']}")


def answers(api: str, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "the Prefect server ended"
    try:
        return httpx.get(f"{api}/health", timeout=10).is_success
    except httpx.TransportError:
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """The process and all of its group, at once: nothing of a test's server is worth waiting for."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all its descendants, whatever groups they are in: as when a host goes down."""
    import psutil

    family: Sequence[psutil.Process] = [psutil.Process(process.pid)]
    family = [*family, *family[0].children(recursive=True)]
    for one in family:
        with suppress(psutil.NoSuchProcess):  # it ended with its parent
            one.kill()
    psutil.wait_procs(family, timeout=DEADLINE_SECONDS)
    process.wait()
