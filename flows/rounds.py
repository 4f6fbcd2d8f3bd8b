"""Work that is done again and again in one process, each kind on a thread of its own, with one sign of life for all."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from models.errors import NocturneError, SettingsError, is_transient
from tasks.stores.heartbeats import Heartbeat
from tasks.stores.locks import held

_BEAT_SECONDS = 2.0
_LOOK_SECONDS = 0.25
_LONGEST_PAUSE = 30.0
_log = logging.getLogger(__name__)


class Rounds:
    """Named jobs, each repeated with a pause. What may heal, or waits for a person, is told and tried again.

    Anything else ends the process with its traceback: a supervisor starts it anew.
    """

    def __init__(self, home: Path, name: str) -> None:
        self._home, self.name = home, name
        self.stop = threading.Event()
        self._signalled = False
        self._jobs: list[threading.Thread] = []
        self._figures: dict[str, int] = {}
        self._troubles: dict[str, str] = {}
        self._fault: BaseException | None = None
        self._sources: list[Callable[[], Mapping[str, int]]] = []

    def every(self, seconds: float, name: str, job: Callable[[], int]) -> None:
        """Do `job` again and again; what it returns is added up under `name`."""
        self._figures.setdefault(name, 0)
        self._jobs.append(threading.Thread(target=self._repeat, args=(seconds, name, job), name=name, daemon=True))

    def figures_from(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Tell these figures too."""
        self._sources.append(source)

    def run(self, meanwhile: AbstractContextManager[object] | None = None) -> None:
        """Until SIGTERM or SIGINT, or a fault, which is raised. `meanwhile` is entered once this process is alone."""
        with alone(self._home, self.name), self._signals(), meanwhile or nullcontext():
            heartbeat = Heartbeat(self._home, self.name)
            for job in self._jobs:
                job.start()
            try:
                while not self._over(0):
                    heartbeat.beat(self._told(), "; ".join(f"{n}: {t}" for n, t in list(self._troubles.items())))
                    self._over(_BEAT_SECONDS)
            finally:
                self.stop.set()
                for job in self._jobs:
                    job.join(timeout=_LONGEST_PAUSE)
            if self._fault is not None:
                heartbeat.beat(self._told(), f"ended: {type(self._fault).__name__}; see the log")
                raise self._fault
            heartbeat.end()

    def _over(self, seconds: float) -> bool:
        """Whether it is to end, waiting at most this long to hear so."""
        end = time.monotonic() + seconds
        while not (self._signalled or self.stop.wait(min(_LOOK_SECONDS, max(0.0, end - time.monotonic())))):
            if time.monotonic() >= end:
                return False
        return True

    def _told(self) -> dict[str, int]:
        return {**self._figures, **{k: v for source in self._sources for k, v in source().items()}}

    def _repeat(self, seconds: float, name: str, job: Callable[[], int]) -> None:
        failures = 0
        while not self.stop.is_set():
            try:
                self._figures[name] += job()
            except NocturneError as error:
                failures += 1
                self._trouble(name, str(error))
            except Exception as error:  # noqa: BLE001 - told, and then the process ends
                if not is_transient(error):
                    self._fault = error
                    self.stop.set()
                    return
                failures += 1
                self._trouble(name, type(error).__name__)
            else:
                failures = 0
                if self._troubles.pop(name, None):
                    _log.info("%s: well again", name)
            self.stop.wait(min(_LONGEST_PAUSE, seconds * 2**failures))

    def _trouble(self, name: str, told: str) -> None:
        if self._troubles.get(name) != told:
            _log.warning("%s: %s", name, told)
        self._troubles[name] = told

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def asked(number: int, frame: FrameType | None) -> None:
            # Only a flag: the handler may interrupt a wait on the event, which holds the lock that `set` takes.
            self._signalled = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def alone(home: Path, name: str) -> Iterator[None]:
    """One process of this name for one home. Raises SettingsError where another one has it."""
    taken = SettingsError(
        "another process of this name runs on this home folder",
        where=name,
        hint="stop it first; `nocturne status` shows what runs",
        reason="runs-already",
    )
    with held(home / "run" / f"{name}.lock", taken):
        yield
