"""When a study is whole: after a quiet time, at once when its sender says so, and never later than a cap.

Then it becomes a study version: the set of its instances, by their digests. The event that tells of it is written in
the same transaction, so that neither is there without the other. An instance that comes later makes the next version;
the same set of instances never makes two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.hashing import content_key
from models.hospital import Completion
from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Outbox
from tasks.stores.tables import ArrivalRow, DeliveryRow, InstanceRow, StudyVersionRow, now

LISTENER = "listener"
"""The listener's name as a source."""


class Completer:
    """Looks at the studies on their way in. `rules` are by source; others follow `default`."""

    def __init__(self, catalog: Catalog, rules: Mapping[str, Completion], default: Completion) -> None:
        self._catalog, self._rules, self._default = catalog, rules, default
        self._outbox = Outbox(catalog)

    def look(self) -> int:
        """Complete what is due; returns how many versions were made."""
        moment = now()
        waiting = self._catalog.find(ArrivalRow, ArrivalRow.waiting > 0, order_by=ArrivalRow.last_at)
        return sum(self._complete(row.study, moment) for row in waiting if self._due(row, moment))

    def _due(self, row: ArrivalRow, moment: datetime) -> str | None:
        """Why the study is held to be whole at `moment`, or None."""
        rule = self._rules.get(row.source, self._default)
        if row.told_at is not None and row.told_at >= row.last_at:
            return "told"
        if moment - row.last_at >= timedelta(seconds=rule.quiet_seconds):
            return "quiet"
        return "cap" if moment - row.first_at >= timedelta(seconds=rule.cap_seconds) else None

    def _complete(self, study: str, moment: datetime) -> int:
        with self._catalog.transaction() as session:
            # Looked at once more under the writers' lock: an instance may have come in between.
            row = session.get(ArrivalRow, study, with_for_update=True)
            why = self._due(row, moment) if row is not None and row.waiting > 0 else None
            if row is None or why is None:
                return 0
            instances = self._instances(session, study)
            key = content_key("study version", study, instances)
            row.waiting, row.told_at = 0, None
            if not instances or session.get(StudyVersionRow, key) is not None:
                return 0
            row.version += 1
            before = (StudyVersionRow.study == study, StudyVersionRow.latest)
            session.execute(update(StudyVersionRow).where(*before).values(latest=False))
            version = StudyVersionRow(
                version=key,
                study=study,
                number=row.version,
                instances=instances,
                why=why,
                flags=["conflict"] if row.conflicts else [],
                source=row.source,
                completed_at=now(),
            )
            session.add(version)
            self._outbox.put(session, "event", f"arrived-{key}", event_payload(version))
            return 1

    def _instances(self, session: Session, study: str) -> list[str]:
        """Digests of all instances but our own results, which a PACS may send back: they would call for the next."""
        query = select(InstanceRow.instance, InstanceRow.sop_uid).where(InstanceRow.study == study)
        objects = session.scalars(select(DeliveryRow.objects).where(DeliveryRow.study == study)).all()
        ours = _uids(objects)
        return sorted(instance for instance, uid in session.execute(query) if uid not in ours)


def event_payload(version: StudyVersionRow) -> dict[str, object]:
    """What the event tells, in pseudonyms."""
    return {"version": version.version, "study": version.study, "number": version.number, "why": version.why}


def _uids(objects: Iterable[Sequence[Mapping[str, str]]]) -> set[str]:
    return {item["uid"] for row in objects for item in row}
