"""The servers of an installation, killed and started again on the same port, and a command that goes on meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.components import until

ROOT = Path(__file__).parents[2]
STARTING_SECONDS = 900.0
LONGEST_SECONDS = 1800.0


@dataclass
class Server:
    """`nocturne run NAME`; `health` is where it tells that it is up."""

    name: str
    health: str
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it, and wait for nothing."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows", "run", self.name],
                env=dict(self.environment),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> None:
        """Until it answers."""
        self.begin()
        until(self._answers, f"{self.name} answers", STARTING_SECONDS)

    def kill(self) -> None:
        """At once, with all that it has started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        try:
            return httpx.get(self.health, timeout=10, trust_env=False).is_success
        except httpx.TransportError:
            return False


@contextmanager
def serving(name: str, health: str, environment: Mapping[str, str], log: Path) -> Iterator[Server]:
    """Up; ended afterwards."""
    server = Server(name, health, environment, log)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class Command:
    """`nocturne WORDS…`, which waits at gates (see `tests.faults.gates`)."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def told(self) -> str:
        """What it has printed."""
        return (self.folder / "told").read_text(errors="replace")

    def reach(self, gate: str) -> None:
        """Until it stands there."""
        until(lambda: self._stands_at(gate), f"it comes to {gate}", LONGEST_SECONDS)

    def _stands_at(self, gate: str) -> bool:
        assert self.process.poll() is None, f"it ended before {gate}:\n{self.told[-4000:]}"
        return (self.folder / f"{gate}.reached").exists()

    def let(self, gate: str) -> None:
        """It may go on."""
        (self.folder / f"{gate}.open").touch()

    def end(self) -> int:
        """Until it has ended; its exit code."""
        return self.process.wait(LONGEST_SECONDS)


@contextmanager
def started(folder: Path, environment: Mapping[str, str], gates: tuple[str, ...], *words: str) -> Iterator[Command]:
    """Under way; `folder` is its own. Killed afterwards, where it goes on still."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.faults.gates", str(folder), ",".join(gates), *words]
    with (folder / "told").open("ab") as told:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=ROOT, stdout=told, stderr=told, start_new_session=True
        )
    try:
        yield Command(folder, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
