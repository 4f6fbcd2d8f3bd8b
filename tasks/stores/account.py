"""How far every study that was received has got: counted in one pass, and told by name where it does not add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, and_, case, exists, func, select
from sqlalchemy.orm import aliased

from models.account import Account, Standing
from tasks.stores.catalog import Catalog
from tasks.stores.tables import ArrivalRow, DeliveryRow, OutboxRow, QuarantineRow, StudyVersionRow

_MEANT_FOR_SENDING: Final = ("delivered", "waiting", "refused")
"""Outcomes of versions of which something was to be sent; what became of that, the deliveries say."""
_AT_AN_END: Final = ("predicted", "ingested", "nothing-fits")
_AT_THE_DOOR: Final = "receive"
"""The stage of what was set aside as it came."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A study (a pseudonym) that has no place in the account, or two, or waits for what will not come."""

    study: str
    why: str


def account(catalog: Catalog) -> Account:
    """All studies by standing, at one moment."""
    standing = _standing()
    received = select(func.count(), func.coalesce(func.sum(ArrivalRow.instances), 0)).select_from(ArrivalRow)
    still_open = (QuarantineRow.resolved_at.is_(None), QuarantineRow.stage == _AT_THE_DOOR)
    with catalog.reading() as session:
        studies, instances = session.execute(received).one()
        found = session.execute(_placed(standing.label("standing"), func.count()).group_by("standing"))
        standings = {str(name): int(number) for name, number in found}
        unfiled = session.scalar(select(func.count()).select_from(QuarantineRow).where(*still_open)) or 0
    return Account.of(int(studies), standings, instances=int(instances), unfiled=unfiled)


def strays(catalog: Catalog, limit: int = 20) -> tuple[Stray, ...]:
    """At most `limit` of each kind. Looks at more than `account`, and takes longer."""
    with catalog.reading() as session:
        return tuple(
            Stray(study, why)
            for why, query in _lost()
            for study in session.scalars(query.order_by("study").limit(limit))
        )


def _placed(*what: Any) -> Select[Any]:
    """Every study that was received, with its latest version and what is not right with its deliveries."""
    latest = and_(StudyVersionRow.study == ArrivalRow.study, StudyVersionRow.number == ArrivalRow.version)
    return (
        select(*what)
        .select_from(ArrivalRow)
        .outerjoin(StudyVersionRow, latest)
        .outerjoin(_UNSENT, _UNSENT.c.study == ArrivalRow.study)
        .outerjoin(_REFUSED, _REFUSED.c.study == ArrivalRow.study)
    )


_UNSENT: Final = select(DeliveryRow.study).where(DeliveryRow.state == "waiting").distinct().subquery("unsent")
_LATER: Final = aliased(DeliveryRow)
_REFUSED: Final = (  # unless what was made of a later version is on its way there, or arrived
    select(DeliveryRow.study)
    .where(
        DeliveryRow.state == "refused",
        ~exists().where(
            _LATER.study == DeliveryRow.study,
            _LATER.destination == DeliveryRow.destination,
            _LATER.created_at > DeliveryRow.created_at,
        ),
    )
    .distinct()
    .subquery("refused")
)


def _standing() -> Any:
    outcome = StudyVersionRow.outcome
    # The results of an earlier version are not sent again where the latest one says the same.
    told_before = and_(ArrivalRow.version > 1, exists().where(DeliveryRow.study == ArrivalRow.study))
    return case(
        (ArrivalRow.waiting > 0, Standing.COMING_IN.value),
        (outcome.is_(None), Standing.ASTRAY.value),
        (outcome == "", Standing.TO_BE_ANALYSED.value),
        (outcome == "failed", Standing.FAILED.value),
        (outcome == "quarantined", Standing.QUARANTINED.value),
        (_UNSENT.c.study.is_not(None), Standing.IN_OUTBOX.value),
        (_REFUSED.c.study.is_not(None), Standing.REFUSED.value),
        (outcome.in_(_MEANT_FOR_SENDING), Standing.SENT.value),
        (and_(outcome.in_(_AT_AN_END), told_before), Standing.SENT.value),
        (outcome.in_(_AT_AN_END), Standing.NOTHING_TO_SEND.value),
        else_=Standing.ASTRAY.value,
    )


def _lost() -> Iterator[tuple[str, Select[Any]]]:
    """Why, and the studies."""
    version, study = StudyVersionRow, StudyVersionRow.study.label("study")
    yield (
        "nothing of it waits, and it has no version with an outcome that is known",
        _placed(ArrivalRow.study.label("study")).where(_standing() == Standing.ASTRAY.value),
    )
    same = aliased(version)
    two = exists().where(same.study == version.study, same.number == version.number, same.version != version.version)
    yield "two versions of it bear one number", select(study).where(two).distinct()
    known = exists().where(ArrivalRow.study == version.study)
    yield "it was held to be whole, and is not among those received", select(study).where(~known).distinct()
    delivery = exists().where(DeliveryRow.study == version.study)
    yield (
        "its results were to be sent, and there is no delivery",
        select(study).where(version.outcome.in_(_MEANT_FOR_SENDING), ~delivery).distinct(),
    )
    told = exists().where(OutboxRow.message == "arrived-" + version.version)
    yield "it is whole, and no message tells of it", select(study).where(version.outcome == "", ~told).distinct()
    message = exists().where(OutboxRow.message == DeliveryRow.delivery, OutboxRow.done_at.is_(None))
    yield (
        "a delivery waits, and nothing in the outbox sends it",
        select(DeliveryRow.study.label("study")).where(DeliveryRow.state == "waiting", ~message).distinct(),
    )
