"""How far every study that was received has got: counted by indexes, and told by name where it does not add up.

Two counts that know nothing of each other meet: of the studies that came, and of the latest versions by their outcomes.
What a study stands as beyond that (more of it comes, a delivery waits) is looked at for the few of which it is so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, and_, exists, func, literal_column, select
from sqlalchemy.orm import Session, aliased

from models.account import DELIVERED, Account, Standing
from tasks.stores.catalog import Catalog
from tasks.stores.tables import ArrivalRow, DeliveryRow, OutboxRow, QuarantineRow, StudyVersionRow

_AT_REST: Final = {
    "": Standing.TO_BE_ANALYSED,
    "failed": Standing.FAILED,
    "quarantined": Standing.QUARANTINED,
    "delivered": Standing.SENT,
    "waiting": Standing.SENT,
    "refused": Standing.SENT,
    "predicted": Standing.NOTHING_TO_SEND,
    "ingested": Standing.NOTHING_TO_SEND,
    "nothing-fits": Standing.NOTHING_TO_SEND,
}
"""By the latest version's outcome, where nothing comes in, waits or was refused: that, the deliveries say."""
_MEANT_FOR_SENDING: Final = ("delivered", "waiting", "refused")
_ENDED: Final = tuple(outcome for outcome, standing in _AT_REST.items() if standing in DELIVERED)
_NONE: Final[Any] = literal_column("NULL")
_ONE: Final[Any] = literal_column("1")
"""As the index has it: of a parameter SQLite cannot know that it is the same."""
_AT_THE_DOOR: Final = "receive"
"""The stage of what was set aside as it came."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A study (a pseudonym) that has no place in the account, or two, or waits for what will not come."""

    study: str
    why: str


def account(catalog: Catalog) -> Account:
    """All studies by standing, at one moment."""
    arrived = select(func.count(), func.coalesce(func.sum(ArrivalRow.instances), 0)).select_from(ArrivalRow)
    still_open = (QuarantineRow.resolved_at.is_(None), QuarantineRow.stage == _AT_THE_DOOR)
    latest = select(StudyVersionRow.outcome, func.count()).where(StudyVersionRow.latest)
    with catalog.reading() as session:
        studies, instances = session.execute(arrived).one()
        standings = Counter[Standing]()
        for outcome, number in session.execute(latest.group_by(StudyVersionRow.outcome)):
            standings[_AT_REST.get(outcome, Standing.ASTRAY)] += number
        for outcome, standing, number in _elsewhere(session):
            if outcome is not None:
                standings[_AT_REST.get(outcome, Standing.ASTRAY)] -= number
            standings[standing] += number
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


def _elsewhere(session: Session) -> Iterator[tuple[str | None, Standing, int]]:
    """Latest outcome (None: there is no version), standing and number of the studies that do not stand by it."""
    version, latest = StudyVersionRow, StudyVersionRow.latest
    # By no index of the outcomes, which would lead through all of them: by the few studies.
    outcome = func.coalesce(version.outcome, _NONE).label("said")
    said = select(outcome, func.count()).group_by("said")
    coming = said.select_from(ArrivalRow).outerjoin(version, and_(version.study == ArrivalRow.study, latest))
    for found, number in session.execute(coming.where(ArrivalRow.waiting > 0)):
        yield found, Standing.COMING_IN, number
    at_rest = exists().where(ArrivalRow.study == version.study, ArrivalRow.waiting == 0)
    rests = said.where(latest, at_rest)
    unsent, refused = version.study.in_(_UNSENT), version.study.in_(_REFUSED)
    for found, number in session.execute(rests.where(unsent)):
        if found in _ENDED:
            yield found, Standing.IN_OUTBOX, number
    for found, number in session.execute(rests.where(refused, ~unsent)):
        if found in _ENDED:
            yield found, Standing.REFUSED, number
    # The results of an earlier version are not sent again where the latest one says the same.
    before = exists().where(DeliveryRow.study == version.study)
    again = said.where(version.number > _ONE, latest.is_(True), at_rest, before, ~unsent, ~refused)
    for found, number in session.execute(again):
        if _AT_REST.get(str(found)) is Standing.NOTHING_TO_SEND:
            yield found, Standing.SENT, number


_UNSENT: Final = select(DeliveryRow.study).where(DeliveryRow.state == "waiting")
_LATER: Final = aliased(DeliveryRow)
REFUSED: Final = and_(
    DeliveryRow.state == "refused",
    ~exists().where(
        _LATER.study == DeliveryRow.study,
        _LATER.destination == DeliveryRow.destination,
        _LATER.created_at > DeliveryRow.created_at,
    ),
)
"""Of a delivery: it was refused, and nothing that was made of a later version of the study came, or is on its way."""
_REFUSED: Final = select(DeliveryRow.study).where(REFUSED)


def _lost() -> Iterator[tuple[str, Select[Any]]]:
    """Why, and the studies."""
    version, study = StudyVersionRow, StudyVersionRow.study.label("study")
    latest = exists().where(version.study == ArrivalRow.study, version.latest)
    yield (
        "nothing of it waits, and it was never held to be whole",
        select(ArrivalRow.study.label("study")).where(ArrivalRow.waiting == 0, ~latest),
    )
    yield (
        "its latest version has an outcome that is not known",
        select(study).where(version.latest, version.outcome.not_in(tuple(_AT_REST))),
    )
    same = aliased(version)
    two = exists().where(same.study == version.study, same.latest, same.version != version.version)
    yield "two versions of it are the latest", select(study).where(version.latest, two).distinct()
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
