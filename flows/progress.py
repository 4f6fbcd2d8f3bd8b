"""How far a run's stages are, in the Prefect UI."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.progress import shown_on

_UPDATE_SECONDS = 5.0
_LAST_SECONDS = 5.0
_log = logging.getLogger(__name__)


@contextmanager
def progress_artifacts() -> Iterator[None]:
    """A progress artifact for each stage meanwhile, brought up to date every few seconds.

    A thread of its own tells the server, and what it cannot tell is left out: a server that is away neither delays
    hours of work nor ends them.
    """
    shown = _Shown()
    telling = threading.Thread(target=copy_context().run, args=(shown.tell,), name="progress", daemon=True)
    telling.start()
    try:
        with shown_on(shown):
            yield
    finally:
        shown.end_telling()
        telling.join(_LAST_SECONDS)


@dataclass
class _Stage:
    name: str
    total: float | None
    done: float = 0.0
    ended: bool = False
    told: float = -1.0
    artifact: UUID | None = None

    @property
    def share(self) -> float:
        """Percent."""
        if self.ended:
            return 100.0
        return min(100.0, 100.0 * self.done / self.total) if self.total else 0.0


class _Shown:
    """A `tasks.progress.Sink` that remembers, and what its thread does."""

    def __init__(self) -> None:
        self._stages: list[_Stage] = []
        self._over = threading.Event()

    def begin(self, name: str, total: float | None, unit: str) -> int:
        """One more."""
        self._stages.append(_Stage(name, total))
        return len(self._stages) - 1

    def advance(self, handle: int, amount: float, note: str | None) -> None:
        """It has come further."""
        self._stages[handle].done += amount

    def end(self, handle: int, note: str | None) -> None:
        """Full."""
        self._stages[handle].ended = True

    def end_telling(self) -> None:
        """A last time, and no more."""
        self._over.set()

    def tell(self) -> None:
        """Until it is over, what is new."""
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while not self._over.wait(_UPDATE_SECONDS):
                self._tell_all()
            self._tell_all()

    def _tell_all(self) -> None:
        for stage in tuple(self._stages):
            try:
                _tell(stage)
            except (httpx.HTTPError, RuntimeError) as error:  # away, or its client was closed with the run
                _log.info("the Prefect server was not told how far %s is: %s", stage.name, error)
                return


def _tell(stage: _Stage) -> None:
    share = stage.share
    if share == stage.told:
        return
    if stage.artifact is None:
        made = create_progress_artifact(share, description=stage.name)
        stage.artifact = made if isinstance(made, UUID) else None
    else:
        update_progress_artifact(stage.artifact, progress=share)
    stage.told = share
