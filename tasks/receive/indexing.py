"""The catalog rows of what was received: instances, the studies they belong to, and what was refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, case, func, inspect, null, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from models.hashing import content_key
from tasks.stores.catalog import Catalog, by_parts
from tasks.stores.spool import Stored
from tasks.stores.tables import ArrivalRow, InstanceRow, QuarantineRow

STAGE: Final = "receive"


@dataclass(frozen=True, slots=True)
class Arrived:
    """An instance that lies in the spool."""

    stored: Stored
    at: datetime


@dataclass(frozen=True, slots=True)
class Told:
    """The sender said that this study (a pseudonym) is whole."""

    study: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Refused:
    """An instance that lies in the spool's quarantine."""

    digest: str
    reason: str
    what: str


News = Arrived | Told | Refused


class Index:
    """Writes news of one source. Writing the same news again changes nothing."""

    def __init__(self, catalog: Catalog, source: str) -> None:
        self._catalog = catalog
        self._source = source
        self._insert: Any = (sqlite if catalog.engine.dialect.name == "sqlite" else postgresql).insert
        # Made once, so that SQLAlchemy compiles them once: rows come ten times a second.
        self._add_instances = self._instances_statement()
        self._add_arrivals = self._arrivals_statement()
        self._find_conflicts = _conflicts_statement()

    def write(self, batch: Sequence[News]) -> None:
        """All of them in one transaction."""
        arrived = {news.stored.instance: news for news in batch if isinstance(news, Arrived)}
        with self._catalog.transaction() as session:
            new = [arrived[name] for name in sorted(self._insert_instances(session, arrived))]
            self._count(session, new)
            self._flag_conflicts(session, {news.stored.sop_uid for news in new})
            for news in batch:
                if isinstance(news, Told):
                    self._tell(session, news)
                elif isinstance(news, Refused):
                    self._set_aside(session, news)

    def known(self, instances: Collection[str]) -> set[str]:
        """Those that have a row."""
        names = list(instances)
        found: set[str] = set()
        with self._catalog.reading() as session:
            for part in by_parts(names):
                found |= set(session.scalars(select(InstanceRow.instance).where(InstanceRow.instance.in_(part))))
        return found

    def mark(self, cursor: str, value: str) -> None:
        """Remember how far something was read."""
        self._catalog.mark(cursor, value)

    def _instances_statement(self) -> Any:
        table = inspect(InstanceRow).local_table
        return self._insert(table).on_conflict_do_nothing().returning(table.c.instance)

    def _arrivals_statement(self) -> Any:
        statement = self._insert(inspect(ArrivalRow).local_table)
        said, first = statement.excluded, ArrivalRow.waiting == 0
        return statement.on_conflict_do_update(
            index_elements=["study"],
            set_={
                "source": said.source,
                "first_at": case((first, said.first_at), else_=ArrivalRow.first_at),
                "last_at": said.last_at,
                "told_at": case((first, null()), else_=ArrivalRow.told_at),  # it was said of the last version
                "waiting": ArrivalRow.waiting + said.waiting,
                "instances": ArrivalRow.instances + said.instances,
            },
        )

    def _insert_instances(self, session: Session, arrived: dict[str, Arrived]) -> set[str]:
        if not arrived:
            return set()
        # In one order everywhere, so that two processes with the same instances wait instead of blocking each other.
        rows = [self._row(arrived[name]) for name in sorted(arrived)]
        return set(session.connection().scalars(self._add_instances, rows))

    def _row(self, news: Arrived) -> dict[str, Any]:
        stored = news.stored
        return {
            "instance": stored.instance,
            "sop_uid": stored.sop_uid,
            "series_uid": stored.series_uid,
            "study": stored.study,
            "sop_class": stored.sop_class,
            "modality": stored.modality,
            "bytes": stored.bytes,
            "source": self._source,
            "received_at": news.at,
        }

    def _count(self, session: Session, new: Sequence[Arrived]) -> None:
        moments: dict[str, list[datetime]] = defaultdict(list)
        for news in new:
            moments[news.stored.study].append(news.at)
        rows = [
            {
                "study": study,
                "source": self._source,
                "first_at": min(times),
                "last_at": max(times),
                "waiting": len(times),
                "conflicts": 0,
                "version": 0,
                "instances": len(times),
            }
            for study, times in sorted(moments.items())
        ]
        if rows:
            session.connection().execute(self._add_arrivals, rows)

    def _flag_conflicts(self, session: Session, sop_uids: set[str]) -> None:
        studies: set[str] = set()
        names = sorted(sop_uids)
        for part in by_parts(names):
            studies |= set(session.scalars(self._find_conflicts, {"names": part}))
        for study in sorted(studies):
            count = select(func.count(InstanceRow.sop_uid.distinct())).where(InstanceRow.study == study, _twice())
            found = session.scalar(count)
            session.execute(_quiet(update(ArrivalRow).where(ArrivalRow.study == study).values(conflicts=found)))

    def _tell(self, session: Session, news: Told) -> None:
        # Said of a study of which nothing is waiting it must not make the next late instance a version of its own.
        waiting = [ArrivalRow.study == news.study, ArrivalRow.waiting > 0, ArrivalRow.first_at <= news.at]
        session.execute(_quiet(update(ArrivalRow).where(*waiting).values(told_at=news.at)))

    def _set_aside(self, session: Session, news: Refused) -> None:
        row = QuarantineRow(
            entry=content_key(STAGE, news.digest, news.reason),
            stage=STAGE,
            subject=news.digest,
            reason=news.reason,
            what=news.what,
            instances=1,
            hint="the instance lies in the spool's quarantine folder",
        )
        self._catalog.insert(session, row)


def _conflicts_statement() -> Any:
    """The studies of instances with these UIDs that came with other bytes too."""
    named = InstanceRow.sop_uid.in_(bindparam("names", expanding=True))
    return select(InstanceRow.study).where(named, _twice()).distinct()


def _twice() -> Any:
    other = aliased(InstanceRow)
    same = [other.sop_uid == InstanceRow.sop_uid, other.instance != InstanceRow.instance]
    return select(other.instance).where(*same).exists()


def _quiet(statement: Any) -> Any:
    return statement.execution_options(synchronize_session=False)
