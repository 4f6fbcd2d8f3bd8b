"""What is to be told outside, kept in the catalog until it has been acknowledged.

A message is written in the transaction of what it tells of. Whoever takes it holds a lease: a sender that is killed
leaves it to be taken again, and two senders never have the same message at once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tasks.stores.catalog import Catalog
from tasks.stores.tables import OutboxRow, now

OutboxKind = Literal["event", "delivery"]
FIRST_DELAY: Final = 2.0
LONGEST_DELAY: Final = 300.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message that was taken; `attempts` includes this one."""

    message: str
    kind: str
    payload: Mapping[str, Any]
    attempts: int


class Outbox:
    """Messages by key. Putting the same message twice puts it once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def put(self, session: Session, kind: OutboxKind, message: str, payload: Mapping[str, Any]) -> bool:
        """Write a message within the caller's transaction; False where it is there already."""
        row = OutboxRow(message=message, kind=kind, payload=dict(payload))
        return bool(self._catalog.insert(session, row))

    def take(self, kind: OutboxKind, *, lease_seconds: float, limit: int = 1) -> list[Message]:
        """Those that are due, the oldest first; they are not due again before the lease is over."""
        return self._take([OutboxRow.kind == kind], lease_seconds, limit)

    def take_one(self, message: str, *, lease_seconds: float) -> Message | None:
        """This very message, if it is due."""
        return next(iter(self._take([OutboxRow.message == message], lease_seconds, 1)), None)

    def acknowledged(self, message: str) -> None:
        """It has arrived; it will not be taken again."""
        self._catalog.change(OutboxRow, OutboxRow.message == message, done_at=now(), error="")

    def postponed(self, message: str, error: str, *, attempts: int) -> float:
        """It has not arrived: due again after a delay that doubles, with jitter, up to five minutes. Returns it."""
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempts - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
        self._catalog.change(
            OutboxRow, OutboxRow.message == message, due_at=now() + timedelta(seconds=delay), error=error
        )
        return delay

    def waiting(self, kind: OutboxKind) -> int:
        """How many have not been acknowledged."""
        return self._catalog.count(OutboxRow, OutboxRow.kind == kind, OutboxRow.done_at.is_(None))

    def _take(self, where: list[Any], lease_seconds: float, limit: int) -> list[Message]:
        moment = now()
        due = [*where, OutboxRow.done_at.is_(None), OutboxRow.due_at <= moment]
        with self._catalog.reading() as session:
            # Most looks find nothing: they must not take the writers' lock.
            if session.scalar(select(OutboxRow.message).where(*due).limit(1)) is None:
                return []
        with self._catalog.transaction() as session:
            found = session.scalars(
                select(OutboxRow).where(*due).order_by(OutboxRow.due_at).limit(limit).with_for_update(skip_locked=True)
            ).all()
            until = moment + timedelta(seconds=lease_seconds)
            for row in found:
                session.execute(
                    update(OutboxRow)
                    .where(OutboxRow.message == row.message)
                    .values(due_at=until, attempts=row.attempts + 1)
                    .execution_options(synchronize_session=False)
                )
            return [Message(row.message, row.kind, row.payload, row.attempts + 1) for row in found]
