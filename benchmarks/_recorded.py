"""Every statement that this process sends to PostgreSQL: who asked, how long each part of the answer took, how much."""

from __future__ import annotations

import re
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, event

ROOT: Final = Path(__file__).resolve().parents[1]
_PASSED_OVER = ("tasks/stores/catalog.py", "tasks/stores/outbox.py", "tasks/stores/vault.py")


@dataclass
class Asked:
    """One statement of one place in the code, however often it was sent. Times in milliseconds; `parts` of answers
    that are fetched in parts count one by one."""

    place: str
    statement: str
    parts: list[float] = field(default_factory=list)
    rows: int = 0
    slowest: tuple[str, Any] = ("", None)

    @property
    def most(self) -> float:
        """The slowest part."""
        return max(self.parts)

    @property
    def middle(self) -> float:
        """The median part."""
        return statistics.median(self.parts)


class Recorder:
    """What was asked between `recording` and its end, on every engine of this process."""

    def __init__(self) -> None:
        self.asked: dict[tuple[str, str], Asked] = {}
        self._lock = threading.Lock()
        self._of_cursor: dict[str, tuple[str, str]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Listen meanwhile."""
        event.listen(Engine, "before_cursor_execute", self._before)
        event.listen(Engine, "after_cursor_execute", self._after)
        _TimedCursor.told_to = self
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", self._before)
            event.remove(Engine, "after_cursor_execute", self._after)
            _TimedCursor.told_to = None

    def found(self) -> list[Asked]:
        """All of it, the slowest first."""
        return sorted(self.asked.values(), key=lambda one: -one.most)

    def took(self, key: tuple[str, str], milliseconds: float, rows: int, sent: tuple[str, Any] | None = None) -> None:
        """One part of one answer."""
        with self._lock:
            one = self.asked.setdefault(key, Asked(*key))
            if sent and milliseconds >= max(one.parts, default=0.0):
                one.slowest = sent
            one.parts.append(milliseconds)
            one.rows = max(one.rows, rows)

    def _before(self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if connection.dialect.name == "postgresql":
            key = _place(), _short(statement)
            if isinstance(cursor, _TimedCursor):
                cursor.key = key
            context.begun = time.perf_counter(), key

    def _after(self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if connection.dialect.name == "postgresql":
            begun, key = context.begun
            took = 1000 * (time.perf_counter() - begun)
            self.took(key, took, 0 if isinstance(cursor, _TimedCursor) else cursor.rowcount, (statement, parameters))


class _TimedCursor(psycopg.ServerCursor[Any]):
    """A cursor on the server; each part that is fetched counts by itself."""

    told_to: Recorder | None = None
    key = ("", "")

    def fetchmany(self, size: int = 0) -> list[Any]:
        begun = time.perf_counter()
        found = super().fetchmany(size)
        if self.told_to is not None:
            self.told_to.took(self.key, 1000 * (time.perf_counter() - begun), len(found))
        return found


@event.listens_for(Engine, "connect")
def _time_cursors(connection: Any, record: Any) -> None:
    if isinstance(connection, psycopg.Connection):
        connection.server_cursor_factory = _TimedCursor


def by_place(found: list[Asked]) -> Mapping[str, list[Asked]]:
    """Grouped by who asked."""
    groups: dict[str, list[Asked]] = defaultdict(list)
    for one in found:
        groups[one.place].append(one)
    return groups


def _place() -> str:
    """The function that asked: the nearest of ours above the catalog."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)) and "/.venv/" not in path:
            name = path[len(str(ROOT)) + 1 :]
            if name.startswith(("tasks/", "flows/", "deployments/")) and name not in _PASSED_OVER:
                return f"{name.removesuffix('.py')}.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "the catalog itself"


def _short(statement: str) -> str:
    """Alike whatever is asked for, and however many."""
    one_line = " ".join(statement.split())
    return re.sub(r"%\(\w+\)s(::[\w ()]+)?(, %\(\w+\)s(::[\w ()]+)?)*", "?", one_line)
