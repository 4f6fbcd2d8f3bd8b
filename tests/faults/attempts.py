"""Nights that are killed at moments drawn from a seed, attempt after attempt, until they are done."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.environment import QUIET
from tests.faults.night import RECIPE, Home, Standing

STAGES = ("ingest", "preprocess", "train", "evaluate", "register")
SERVER = (sys.executable, "-c", "from tests.faults.forks import serve; serve()")
"""Not `-m`: Dask's workers would import the main module, with all that it imports."""
_LONGEST_DELAY = 0.02


@dataclass(frozen=True)
class Attempt:
    """What became of one: whether it was killed, and how many changes it made in the stage that was asked for."""

    killed: bool
    changes: int


@dataclass(frozen=True)
class Attempts:
    """A process that forks one for each attempt (`forks`)."""

    server: subprocess.Popen[str]
    folder: Path

    def make(
        self, home: Home, stage: str, *, work: str = "night", at: int = 0, delay: float = 0.0, **more: Any
    ) -> Attempt:
        """Go through the stages up to `stage`, and die there `delay` seconds into change number `at` (0: never)."""
        tally, log = self.folder / "tally", self.folder / "log"
        tally.unlink(missing_ok=True)
        log.write_bytes(b"")
        places = {"home": str(home.folder), "cohort": str(home.cohort), "tally": str(tally), "log": str(log)}
        asked: dict[str, Any] = {
            **places,
            "work": work,
            "recipe": RECIPE,
            "stage": stage,
            "at": at,
            "delay": delay,
            **more,
        }
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        told = json.loads(self.server.stdout.readline())
        assert told["ended"] in (0, -9), log.read_text()
        return Attempt(told["ended"] != 0, told["changes"])

    def strike(self, home: Home, stage: str, draw: random.Random, within: int, **more: Any) -> bool:
        """One attempt, killed within so many changes if it makes them; what was finished before still stands."""
        before, at = Standing.of(home), draw.randint(1, within)
        delay = draw.choice((0.0, draw.uniform(0, _LONGEST_DELAY)))
        killed = self.make(home, stage, at=at, delay=delay, **more).killed
        before.holds(Standing.of(home), f"a kill at change {at} of {stage}")
        return killed

    def sweep(self, home: Home) -> str:
        """`nocturne doctor --repair`, two days later; returns what it told."""
        home.age()
        assert not self.make(home, "sweep", work="sweep").killed
        return (self.folder / "log").read_text()


@contextmanager
def attempting(folder: Path) -> Iterator[Attempts]:
    """With a server for attempts, which keeps its notes in `folder`."""
    environment = {**QUIET, **Home(folder, folder).environment}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        SERVER, env=environment, cwd=Path(__file__).parents[2], stdin=pipe, stdout=pipe, text=True
    ) as server:
        yield Attempts(server, folder)
        assert server.stdin is not None
        server.stdin.close()
