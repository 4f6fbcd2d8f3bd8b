"""Rows for tables on what has moved since models began to serve, and on what to label next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.watching import Shift, Suggestion, Watched
from tasks.stores.alerts import FILES
from tasks.stores.tables import AlertRow

DRIFT_COLUMNS = ("model", "what", "", "measure", "test", "value", "alert", "cases", "told")
ALERT_COLUMNS = ("model", "what", "measure", "told", "since")
SUGGESTION_COLUMNS = ("study", "score", "unsure", "novel", "why")
_HOW = {"ks": ("KS, p", "below"), "psi": ("PSI", "from"), "fall": ("fall", "from")}


def drift(watched: Sequence[Watched]) -> list[tuple[Any, ...]]:
    """Every measure of every model, what has moved first; a model of which nothing can be said says why."""
    rows: list[tuple[Any, ...]] = []
    for model in watched:
        told = f"{model.name} {model.version}"
        rows += [(told, *_measured(shift)) for shift in sorted(model.shifts, key=lambda shift: not shift.shifted)]
        if model.note:
            rows.append((told, "", "", "", "", "", "", model.cases, model.note))
    return rows


def alerts(rows: Sequence[AlertRow]) -> list[tuple[Any, ...]]:
    """Open alerts."""
    return [(r.name, r.kind, r.measure, r.told, f"{r.created_at.astimezone():%Y-%m-%d %H:%M}") for r in rows]


def damage(rows: Sequence[AlertRow]) -> list[str]:
    """What of a model's files is damaged, and what happens instead."""
    return [f"{row.name} {row.told}" for row in rows if row.kind == FILES]


def alerts_told(rows: Sequence[AlertRow]) -> str:
    """In a line."""
    models: dict[str, list[str]] = {}
    for row in rows:
        models.setdefault(row.name, []).append(row.measure)
    return "; ".join(f"{name}: {', '.join(measures)}" for name, measures in models.items()) or "none"


def suggestions(found: Sequence[Suggestion]) -> list[tuple[Any, ...]]:
    """Studies to label, the best first."""
    return [(s.study, f"{s.score:.2f}", f"{s.uncertainty:.2f}", f"{s.novelty:.2f}", s.why) for s in found]


def _measured(shift: Shift) -> tuple[Any, ...]:
    how, side = _HOW[shift.how]
    moved = "moved" if shift.shifted else ""
    return (
        shift.kind,
        moved,
        shift.measure,
        how,
        f"{shift.value:.3g}",
        f"{side} {shift.threshold:.3g}",
        shift.cases,
        shift.told,
    )
