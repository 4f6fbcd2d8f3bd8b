"""A hospital in small: a PACS, an installation with a champion, and its processes, started and stopped one by one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pydicom

from models.pseudonyms import Pseudonymizer
from tests.components import Orthanc, dcmtk, free_port, until
from tests.faults.night import Home
from tests.tasks.receive.peer import Answers, ask, of, opened, requester

PROCESSES = ("prefect", "listener", "watch", "relay", "arrivals")
PATIENCE = 300.0
"""Seconds that a study may take on a slow machine that does other work too."""


@dataclass
class Hospital:
    """One installation beside one Orthanc, which is its PACS, its feed and its destination."""

    home: Home
    pacs: Orthanc
    inbox: Path
    listener_port: int = field(default_factory=free_port)
    prefect_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)
    recipes: Sequence[Path] = ()
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of every command on this installation."""
        return {**self.home.environment, "COLUMNS": "200"}

    @property
    def api(self) -> str:
        """The Prefect server's API."""
        return f"http://127.0.0.1:{self.prefect_port}/api"

    def settle(self) -> None:
        """Write the settings, and tell the PACS of us."""
        told = "completion = { quiet_seconds = 86000, cap_seconds = 86400 }"  # only what a sender says makes it whole
        recipes = ", ".join(f'"{path}"' for path in self.recipes)
        self.inbox.mkdir(exist_ok=True)
        (self.home.folder / "nocturne.toml").write_text(
            f"""
[services]
prefect_port = {self.prefect_port}
mlflow_port = {self.mlflow_port}

[listener]
port = {self.listener_port}
free_bytes = 0
{told}

[[watched]]
name = "inbox"
path = "{self.inbox}"
stable_seconds = 0.5
every_seconds = 0.5
completion = {{ quiet_seconds = 3, cap_seconds = 600 }}

[[orthanc]]
name = "feed"
url = "{self.pacs.url}"
user = "{self.pacs.user}"
password = "{self.pacs.password}"
every_seconds = 0.5
{told}

[[destinations]]
name = "pacs"
kind = "dicom"
ae_title = "{self.pacs.ae_title}"
host = "127.0.0.1"
port = {self.pacs.dicom_port}
commitment = true
timeout_seconds = 120

[nightly]
recipes = [{recipes}]
""",
            encoding="utf-8",
        )
        self.pacs.know("NOCTURNE", self.listener_port)

    # -- processes --------------------------------------------------------------------------------------------

    def command(self, *words: str, timeout: float = PATIENCE) -> str:
        """Run a `nocturne` command to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "flows", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, *names: str) -> None:
        """Start processes of the installation."""
        logs = self.home.folder / "logs"
        logs.mkdir(exist_ok=True)
        for name in names:
            with (logs / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen(
                    [sys.executable, "-m", "flows", "run", name],
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def stop(self, *names: str) -> None:
        """Ask processes to stop, and wait until they have."""
        for name in names:
            self.running[name].send_signal(signal.SIGTERM)
        for name in names:
            process = self.running.pop(name)
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def open(self) -> None:
        """Start the server, deploy, and start the rest; returns once the listener and the worker are there."""
        self.start("prefect")
        until(self.prefect_answers, "the Prefect server answers", PATIENCE)
        self.command("deploy")
        self.start(*(name for name in PROCESSES if name != "prefect"))
        until(lambda: {"listener", "watch", "relay", "arrivals"} <= self.signs(), "all processes live", PATIENCE)
        until(self.worker_is_there, "the worker for arrivals is online", PATIENCE)

    def close(self) -> None:
        """Stop everything."""
        self.stop(*reversed(self.running))

    def logs(self) -> str:
        """The end of every log, for a failing test."""
        files = sorted((self.home.folder / "logs").glob("*.log"))
        return "\n".join(f"== {file.stem}\n{file.read_text(errors='replace')[-1500:]}" for file in files)

    def signs(self) -> set[str]:
        """Names of the processes that give a sign of life."""
        return {file.stem for file in (self.home.folder / "run").glob("*.json")}

    # -- Prefect ----------------------------------------------------------------------------------------------

    def prefect_answers(self) -> bool:
        """Whether the server is up."""
        try:
            return httpx.get(f"{self.api}/health", timeout=10, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, path: str, **body: Any) -> Any:
        """POST to the server's API; one that its SQLite was too busy to answer is asked again."""

        def answered() -> httpx.Response | None:
            found = httpx.post(f"{self.api}{path}", json=body, timeout=120, trust_env=False)
            return None if found.status_code == 503 else found

        return until(answered, f"an answer to {path}", PATIENCE).raise_for_status().json()

    def worker_is_there(self) -> bool:
        """Whether some worker has polled for arrivals."""
        pools = self.ask("/work_pools/filter")
        return any(
            worker["status"] == "ONLINE"
            for pool in pools
            if pool["type"] == "nocturne-warm"
            for worker in self.ask(f"/work_pools/{pool['name']}/workers/filter")
        )

    def runs(self, study: Path) -> list[dict[str, Any]]:
        """All runs for the versions of a study."""
        keys = {row["version"] for row in self.versions(study)}
        found = self.ask("/flow_runs/filter", flows={"name": {"any_": ["study arrived"]}})
        return [run for run in found if (run["parameters"].get("version") or {}).get("key") in keys]

    # -- the catalog ------------------------------------------------------------------------------------------

    def rows(self, table: str, study: Path) -> list[dict[str, object]]:
        """A table's rows of one study."""
        key = Pseudonymizer(bytes.fromhex(self.environment["NOCTURNE_SECRET"])).uid(_uid(study))
        return [row for row in self.home.rows(table) if row["study"] == key]

    def versions(self, study: Path) -> list[dict[str, object]]:
        """What was held to be the whole study, oldest first."""
        return sorted(self.rows("study_versions", study), key=lambda row: str(row["completed_at"]))

    # -- what came of it --------------------------------------------------------------------------------------

    def results(self, study: Path) -> list[pydicom.Dataset]:
        """The SEG and SR instances that the PACS holds of a study."""
        found = []
        with self.pacs.client() as client:
            query = {"Level": "Instance", "Query": {"StudyInstanceUID": _uid(study), "Modality": "SEG\\SR"}}
            for identifier in client.post("/tools/find", json=query).raise_for_status().json():
                content = client.get(f"/instances/{identifier}/file").raise_for_status().content
                file = self.inbox.parent / "results" / f"{identifier}.dcm"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content)
                found.append(pydicom.dcmread(file))
        return found

    def segmentation(self, study: Path) -> pydicom.Dataset | None:
        """The study's SEG in the PACS, if it is there."""
        return next((result for result in self.results(study) if result.Modality == "SEG"), None)

    def send(self, study: Path) -> None:
        """Send a study to the listener as a scanner would, and say that this was all of it."""
        command = [dcmtk("storescu"), "-R", "-aet", "SCANNER", "-aec", "NOCTURNE", "127.0.0.1", str(self.listener_port)]
        done = subprocess.run(
            [*command, *map(str, files_of(study))],
            env={**os.environ, "TCP_NODELAY": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        answers = Answers()
        with opened(self.listener_port, answers, requester("SCANNER"), ae_title="NOCTURNE") as assoc:
            assert ask(assoc, *(of(read(file)) for file in files_of(study))) == 0
            kind, _ = answers.next()
            assert kind == 1, "not all of it has arrived"


@contextmanager
def at_work(hospital: Hospital) -> Iterator[Hospital]:
    """Settled and running; everything is stopped afterwards."""
    hospital.settle()
    try:
        hospital.open()
        yield hospital
    finally:
        hospital.close()


def files_of(study: Path) -> list[Path]:
    """A study's files."""
    return sorted(path for path in study.rglob("*") if path.is_file())


def _uid(study: Path) -> str:
    return next(str(read(file).StudyInstanceUID) for file in files_of(study))


def read(file: Path) -> pydicom.Dataset:
    """A header."""
    return pydicom.dcmread(file, stop_before_pixels=True)
