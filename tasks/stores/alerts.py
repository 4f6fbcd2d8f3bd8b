"""What has moved since a model began to serve: told once, open until it has moved back. And what of a model's files is
damaged: open until it is whole and serves, or another version is promoted.

An alert and the event that tells of it are written in one transaction; the relay posts it until it is acknowledged.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.hashing import content_key
from models.watching import Shift, Watched
from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Outbox
from tasks.stores.tables import AlertRow, now

EVENT: Final = "nocturne.model.drifted"
DAMAGED: Final = "nocturne.model.damaged"
FILES: Final = "files"
"""Kind of the alerts on a package that is not what was registered."""
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
            select(AlertRow).where(
                AlertRow.name == watched.name, AlertRow.resolved_at.is_(None), AlertRow.kind != FILES
            )
        ).all()
        moved = _moved(watched.shifts)
        measured = {shift.measure for shift in watched.shifts}
        for row in there:
            if row.measure not in moved and (row.measure in measured or row.package != watched.package):
                _change(session, row.alert, resolved=True)
        known = {row.measure for row in there}
        new = [shift for measure, shift in moved.items() if measure not in known]
        return tuple(key for shift in new if (key := _opened(catalog, session, watched, shift, first)))


def tell_damage(
    catalog: Catalog, name: str, package: str, version: str, told: str, *, since: int, mended: bool = False
) -> None:
    """Raise an alert on a version's files, with its event, once a day; one that is `mended` is told and not open.

    `since` is the number of the audit trail's last move: what is damaged again after another promotion is told again.
    """
    key = content_key("alert", package, FILES, told, since, f"{now():%Y-%m-%d}")
    row = AlertRow(
        alert=key,
        name=name,
        package=package,
        kind=FILES,
        measure=f"files of version {version}",
        how="digest",
        value=0.0,
        threshold=1.0,
        cases=0,
        told=told,
        resolved_at=now() if mended else None,
    )
    with catalog.alone("alerts"), catalog.transaction() as session:
        if catalog.insert(session, row):
            Outbox(catalog).put(session, "event", f"damaged-{key}", {"alert": key})


def settle_damage(catalog: Catalog, name: str, whole: str, promoted: datetime | None) -> None:
    """Alerts on files are over where the package is `whole` again, and those from before the last promotion."""
    over = AlertRow.package == whole
    catalog.change(
        AlertRow,
        AlertRow.name == name,
        AlertRow.kind == FILES,
        AlertRow.resolved_at.is_(None),
        over if promoted is None else over | (AlertRow.created_at <= promoted),
        resolved_at=now(),
    )


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
