"""What has moved since a model began to serve: told once, open until it has moved back.

An alert and the event that tells of it are written in one transaction; the relay posts it until it is acknowledged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.hashing import content_key
from models.watching import Shift, Watched
from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Outbox
from tasks.stores.tables import AlertRow, now

EVENT: Final = "nocturne.model.drifted"
RESOURCE: Final = "nocturne.model."


def open_alerts(catalog: Catalog, name: str | None = None) -> tuple[AlertRow, ...]:
    """Those that are open, of one model or of all, the oldest first."""
    where = [AlertRow.resolved_at.is_(None)] + ([AlertRow.name == name] if name is not None else [])
    return tuple(catalog.find(AlertRow, *where, order_by=AlertRow.created_at))


def settle(catalog: Catalog, watched: Watched, first: str) -> tuple[str, ...]:
    """Open what has newly moved, with its event; resolve what has moved back. Returns the new alerts' keys.

    `first` is the first prediction of the window. A measure of which an alert is open is not told again, even where
    another version serves by now. What another version said is over with it.
    """
    with catalog.alone("alerts"), catalog.transaction() as session:
        there = session.scalars(
            select(AlertRow).where(AlertRow.name == watched.name, AlertRow.resolved_at.is_(None))
        ).all()
        moved = _moved(watched.shifts)
        measured = {shift.measure for shift in watched.shifts}
        for row in there:
            if row.measure not in moved and (row.measure in measured or row.package != watched.package):
                _change(session, row.alert, resolved=True)
        known = {row.measure for row in there}
        new = [shift for measure, shift in moved.items() if measure not in known]
        return tuple(key for shift in new if (key := _opened(catalog, session, watched, shift, first)))


def alert_key(package: str, measure: str, first: str) -> str:
    """Once per model, measure and window."""
    return content_key("alert", package, measure, first)


def _moved(shifts: Sequence[Shift]) -> dict[str, Shift]:
    """By measure; one that two tests found is one."""
    found: dict[str, Shift] = {}
    for shift in shifts:
        if shift.shifted:
            found.setdefault(shift.measure, shift)
    return found


def _opened(catalog: Catalog, session: Session, watched: Watched, shift: Shift, first: str) -> str | None:
    key = alert_key(watched.package, shift.measure, first)
    row = AlertRow(
        alert=key,
        name=watched.name,
        package=watched.package,
        kind=shift.kind,
        measure=shift.measure,
        how=shift.how,
        value=shift.value,
        threshold=shift.threshold,
        cases=shift.cases,
        told=shift.told,
    )
    if not catalog.insert(session, row):
        # The same window once more, by another rule: it was told before.
        _change(session, key, resolved=False)
        return None
    Outbox(catalog).put(session, "event", f"drifted-{key}", {"alert": key})
    return key


def _change(session: Session, key: str, *, resolved: bool) -> None:
    session.execute(update(AlertRow).where(AlertRow.alert == key).values(resolved_at=now() if resolved else None))
