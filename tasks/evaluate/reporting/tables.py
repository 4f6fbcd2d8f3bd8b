"""What tables are made of: typed cells, already in words and rounded, so that the template only lays them out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from models.evaluation import Interval

Tone = Literal["good", "warn", "bad", "muted"]


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval to draw, in percent of the cell's width; `zero` marks where nothing would change."""

    low: float
    value: float
    high: float
    zero: float | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A word with a colour; the word alone says it all."""

    text: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and how the cells below it are set."""

    label: str
    kind: Literal["text", "number", "bar", "code"] = "text"


Cell = str | Bar | Mark | None


@dataclass(frozen=True, slots=True)
class Table:
    """The first cell of a row heads it. `plain`: needs no visible headings."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    plain: bool = False


def numbers(*labels: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(label, "number") for label in labels)


def facts(caption: str, rows: Iterable[tuple[str, str]], *, code: bool = False) -> Table:
    """Two columns: what, and its value; `code` sets the values in a fixed pitch."""
    return Table(caption, (Column("What"), Column("Value", "code" if code else "text")), tuple(rows), True)


def share_bar(interval: Interval) -> Bar:
    """From 0 to 1."""
    value = _percent(interval.value)
    ends = (interval.low, interval.high)
    low, high = (value if end is None else _percent(end) for end in ends)
    return Bar(low, value, high)


def zero_bar(interval: Interval, reach: float = 0.0) -> Bar:
    """Around 0, as far as `reach` to either side, or on its own scale."""
    known = [interval.value, *(end for end in (interval.low, interval.high) if end is not None)]
    reach = reach or max(map(abs, known)) * 1.15 or 1.0
    low, value, high = (_percent(0.5 + v / reach / 2) for v in (min(known), interval.value, max(known)))
    return Bar(low, value, high, 50.0)


def _percent(share: float) -> float:
    return round(100 * min(max(share, 0.0), 1.0), 1)
