"""The catalog rows of what was received: instances, the studies they belong to, and what was refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import case, func, null, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from models.hashing import content_key
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Stored
from tasks.stores.tables import ArrivalRow, CursorRow, InstanceRow, QuarantineRow, now

STAGE: Final = "receive"
_SOME = 400  # values in one IN
_LARGEST = 2**31 - 1  # of the catalog's integers


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
            for start in range(0, len(names), _SOME):
                part = names[start : start + _SOME]
                found |= set(session.scalars(select(InstanceRow.instance).where(InstanceRow.instance.in_(part))))
        return found

    def mark(self, cursor: str, value: str) -> None:
        """Remember how far something was read."""
        row = {"value": value, "changed_at": now()}
        statement = self._insert(CursorRow).values(name=cursor, **row)
        with self._catalog.transaction() as session:
            session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=row))

    def _insert_instances(self, session: Session, arrived: dict[str, Arrived]) -> set[str]:
        if not arrived:
            return set()
        # In one order everywhere, so that two processes with the same instances wait instead of blocking each other.
        rows = [self._row(arrived[name]) for name in sorted(arrived)]
        statement = self._insert(InstanceRow).values(rows).on_conflict_do_nothing()
        return set(session.scalars(statement.returning(InstanceRow.instance)))

    def _row(self, news: Arrived) -> dict[str, Any]:
        stored = news.stored
        return {
            "instance": stored.instance,
            "sop_uid": stored.sop_uid,
            "series_uid": stored.series_uid,
            "study": stored.study,
            "sop_class": stored.sop_class,
            "modality": stored.modality,
            "bytes": min(stored.bytes, _LARGEST),
            "source": self._source,
            "received_at": news.at,
        }

    def _count(self, session: Session, new: Sequence[Arrived]) -> None:
        moments: dict[str, list[datetime]] = defaultdict(list)
        for news in new:
            moments[news.stored.study].append(news.at)
        for study in sorted(moments):
            statement = self._insert(ArrivalRow).values(
                study=study,
                source=self._source,
                first_at=min(moments[study]),
                last_at=max(moments[study]),
                waiting=len(moments[study]),
                conflicts=0,
                version=0,
            )
            said, first = statement.excluded, ArrivalRow.waiting == 0
            session.execute(
                statement.on_conflict_do_update(
                    index_elements=["study"],
                    set_={
                        "source": said.source,
                        "first_at": case((first, said.first_at), else_=ArrivalRow.first_at),
                        "last_at": said.last_at,
                        "told_at": case((first, null()), else_=ArrivalRow.told_at),  # it was said of the last version
                        "waiting": ArrivalRow.waiting + said.waiting,
                    },
                )
            )

    def _flag_conflicts(self, session: Session, sop_uids: set[str]) -> None:
        other = aliased(InstanceRow)
        twice = (
            select(other.instance)
            .where(other.sop_uid == InstanceRow.sop_uid, other.instance != InstanceRow.instance)
            .exists()
        )
        studies: set[str] = set()
        names = sorted(sop_uids)
        for start in range(0, len(names), _SOME):
            part = InstanceRow.sop_uid.in_(names[start : start + _SOME])
            studies |= set(session.scalars(select(InstanceRow.study).where(part, twice).distinct()))
        for study in sorted(studies):
            count = select(func.count(InstanceRow.sop_uid.distinct())).where(InstanceRow.study == study, twice)
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


def _quiet(statement: Any) -> Any:
    return statement.execution_options(synchronize_session=False)
