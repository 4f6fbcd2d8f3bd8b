"""How far a stage is, told to whoever looks: the terminal's bars, the Prefect page, or nobody.

Rooms call `stage(...)`; who wants to draw adds a `Sink`. Values never name an identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Sink(Protocol):
    """Draws stages. Called from any thread."""

    def begin(self, name: str, total: float | None, unit: str) -> int:
        """A stage starts; returns its handle."""
        ...

    def advance(self, handle: int, amount: float, note: str | None) -> None:
        """`amount` more is done; `note` replaces the line's remark."""
        ...

    def end(self, handle: int, note: str | None) -> None:
        """The stage is over."""
        ...


@dataclass(slots=True)
class Stage:
    """One running stage and where it is drawn."""

    drawn: tuple[tuple[Sink, int], ...]
    note: str | None = None

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Tell that `amount` more of the total is done."""
        self.note = note or self.note
        for sink, handle in self.drawn:
            sink.advance(handle, amount, note)


_sinks: tuple[Sink, ...] = ()
_running: dict[str, Stage] = {}


@contextmanager
def shown_on(sink: Sink) -> Iterator[None]:
    """Draw all stages of this process on `sink` too, meanwhile."""
    global _sinks
    _sinks = (*_sinks, sink)
    try:
        yield
    finally:
        _sinks = tuple(s for s in _sinks if s is not sink)


@contextmanager
def stage(name: str, total: float | None = None, unit: str = "") -> Iterator[Stage]:
    """`with stage("ingest", 24, "series") as s: s.advance()`."""
    running = Stage(tuple((sink, sink.begin(name, total, unit)) for sink in _sinks))
    _running[name] = running
    try:
        yield running
    finally:
        _running.pop(name, None)
        for sink, handle in running.drawn:
            sink.end(handle, running.note)


def counted(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """`items` one by one; each that is done advances the stage `name`, where somebody has begun it."""
    for item in items:
        yield item
        if running := _running.get(name):
            running.advance()
