"""What a person sees in the terminal: a bar per stage, tables, and errors that say what to do."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from models.errors import NocturneError, ServiceUnavailableError, TransientError
from tasks import progress

out = Console()
err = Console(stderr=True)

_AGAIN: Final = "Then start the same command again: what was done is kept, and it goes on from where it stood."


class Bars:
    """A `tasks.progress.Sink` of rich bars. Where there is no terminal, a line when a stage ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._names: dict[int, tuple[str, str]] = {}
        self.progress = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[done]:>16}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )

    def begin(self, name: str, total: float | None, unit: str) -> int:
        """A bar appears."""
        handle = self.progress.add_task(name, total=total, done="", note="")
        with self._lock:
            self._names[handle] = (name, unit)
        return handle

    def advance(self, handle: int, amount: float, note: str | None) -> None:
        """The bar grows; its rate and remark are told anew."""
        bar = TaskID(handle)
        self.progress.advance(bar, amount)
        task = next(t for t in self.progress.tasks if t.id == bar)
        _, unit = self._names[handle]
        done = f"{task.completed:,.0f}/{task.total:,.0f} {unit}" if task.total else f"{task.completed:,.0f} {unit}"
        rate = f"{task.speed:.1f} {unit}/s" if task.speed and unit and unit != "s" else ""
        remark = " · ".join(part for part in (rate, note or "") if part)
        self.progress.update(bar, done=done, note=escape(remark))

    def end(self, handle: int, note: str | None) -> None:
        """The bar is full, whatever its total was."""
        bar = TaskID(handle)
        task = next(t for t in self.progress.tasks if t.id == bar)
        self.progress.update(
            bar, total=max(task.completed, 1), completed=max(task.completed, 1), note=escape(note or "")
        )
        if self.progress.disable:
            name, unit = self._names[handle]
            done = f"{task.completed:,.0f} {unit}".strip()
            self._console.print(
                f"{name:<12} {done:>16}  {task.elapsed or 0:6.1f} s  {escape(note or '')}", highlight=False
            )


@contextmanager
def bars() -> Iterator[None]:
    """Draw all stages of this process meanwhile."""
    drawn = Bars(out)
    with drawn.progress, progress.shown_on(drawn):
        yield


@contextmanager
def told_errors() -> Iterator[None]:
    """Errors of the tree end the command with one readable block and exit code 1 (2: bad usage or settings)."""
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, NocturneError) else _server_away(error)
        if told is None:
            raise
        lines = [f"[bold red]{escape(told.what)}[/]"]
        lines += [f"where: {escape(told.where)}"] if told.where else []
        lines += [f"what to do: {escape(told.hint)}"] if told.hint else []
        lines += [_AGAIN] if isinstance(told, TransientError) else []
        err.print(Panel("\n".join(lines), title=told.reason, border_style="red", expand=False))
        sys.exit(1)


def _server_away(error: Exception) -> NocturneError | None:
    """What Prefect's client raises once its own patience is out, as an error of ours."""
    if "prefect" not in sys.modules:
        return None
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    answered = isinstance(error, PrefectHTTPStatusError) and error.response.status_code >= 500
    unreached = isinstance(error, RuntimeError) and "Failed to reach API" in str(error)
    if not (answered or unreached or isinstance(error, httpx.TransportError)):
        return None
    address = urlsplit(str(PREFECT_API_URL.value() or ""))
    where = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
    hint = "start it: `nocturne up`, or what runs it on your site"
    return ServiceUnavailableError("the Prefect server does not answer", where=where or "embedded", hint=hint)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; numbers to the right."""
    kept = [list(row) for row in rows]
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for i, name in enumerate(columns):
        numeric = bool(kept) and all(isinstance(row[i], int | float) for row in kept)
        drawn.add_column(name, justify="right" if numeric else "left")
    for row in kept:
        drawn.add_row(*[f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in row])
    out.print(drawn)


def pairs(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """Two columns: what, value."""
    drawn = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    drawn.add_column(style="dim")
    drawn.add_column(overflow="fold")
    for what, value in rows:
        drawn.add_row(what, escape(str(value)))
    out.print(drawn)
