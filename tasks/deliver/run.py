"""Deliver: results on their way to the hospital's systems, each exactly once, however long that takes.

A delivery is written with its message in the outbox in one transaction. Whoever attempts it holds the message's
lease; what came of it is written with the message's end in one transaction. A process that is killed in between
leaves the message to be taken again: the same objects have the same UIDs, and are looked for before they are resent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.errors import NocturneError, NotFoundError, TransientError
from models.hashing import content_key
from models.hospital import Destination
from models.refs import AnalysisRef, DeliveryRef
from tasks.deliver.commitment import Commitments
from tasks.deliver.dicomweb import DicomwebSender
from tasks.deliver.dimse import DimseSender
from tasks.deliver.folder import FolderSender
from tasks.deliver.objects import Result, known_uids, make
from tasks.deliver.sending import Sender, Sent
from tasks.stores.account import REFUSED
from tasks.stores.catalog import Catalog, by_parts
from tasks.stores.house import Stores
from tasks.stores.outbox import Message, Outbox
from tasks.stores.tables import AnalysisRow, CommitmentRow, DeliveryRow, OutboxRow, StudyVersionRow, now

KIND: Final = "delivery"
MOST_ASKED: Final = 6
"""How often storage commitment is asked for, and how often objects are sent again because it was denied."""
REMEMBERED: Final = timedelta(days=7)
"""How long an unanswered commitment is looked after."""

_LOOK_SECONDS: Final = 0.2

State = Literal["waiting", "sent", "committed", "refused"]


@dataclass(frozen=True, slots=True)
class Delivered:
    """How a delivery stands; `detail` says why, `objects` counts what it consists of."""

    delivery: str
    destination: str
    state: str
    detail: str
    objects: int


def enqueue(stores: Stores, analysis: AnalysisRef, destinations: Sequence[Destination]) -> tuple[DeliveryRef, ...]:
    """Put an analysis's results on their way to every destination; doing it again finds it done.

    What a challenger said in the shadow is never delivered, and nothing has to be where no series fitted. What was
    told of an earlier version of the study is not told again: whoever sends a correction wants no second copy.
    Raises NotFoundError.
    """
    row = _analysis(stores, analysis.key)
    if row.role == "shadow" or not row.predictions:
        return ()
    outbox, made = Outbox(stores.catalog), []
    with stores.catalog.transaction() as session:
        told = _told_before(session, row)
        for destination in destinations:
            if destination.name in told:
                continue
            key = content_key(KIND, row.analysis, destination.name)
            delivery = DeliveryRow(delivery=key, analysis=row.analysis, study=row.study, destination=destination.name)
            stores.catalog.insert(session, delivery)
            outbox.put(session, KIND, key, {"analysis": row.analysis, "destination": destination.name})
            made.append(DeliveryRef.to(key))
    return tuple(made)


def _told_before(session: Session, analysis: AnalysisRow) -> set[str]:
    """Destinations that have, or are to have, the very same predictions under another version of the study."""
    same = (AnalysisRow.study == analysis.study, AnalysisRow.package == analysis.package)
    query = (
        select(DeliveryRow.destination, AnalysisRow.predictions)
        .join(AnalysisRow, AnalysisRow.analysis == DeliveryRow.analysis)
        .where(*same, AnalysisRow.analysis != analysis.analysis, DeliveryRow.state != "refused")
    )
    return {name for name, predictions in session.execute(query) if sorted(predictions) == sorted(analysis.predictions)}


def resend(catalog: Catalog, destination: str | None = None) -> int:
    """Make what `destination` (or any) refused due once more: somebody has mended what was wrong. How many they are.

    What has arrived since in a later version of its study is left as it is.
    """
    named = (DeliveryRow.destination == destination,) if destination else ()
    with catalog.transaction() as session:
        refused = session.execute(select(DeliveryRow.delivery, DeliveryRow.study).where(REFUSED, *named)).all()
        for rows in by_parts(refused):
            due_again(session, [row.delivery for row in rows], "it is sent again, as somebody asked")
            bad = (StudyVersionRow.outcome == "refused", StudyVersionRow.study.in_({row.study for row in rows}))
            session.execute(update(StudyVersionRow).where(*bad).values(outcome="waiting"))
    return len(refused)


def due_again(session: Session, deliveries: Sequence[str], detail: str) -> None:
    """Deliveries that had come to an end are attempted once more; `detail` says why."""
    waits = {"state": "waiting", "detail": detail}
    session.execute(update(DeliveryRow).where(DeliveryRow.delivery.in_(deliveries)).values(**waits))
    due = {"done_at": None, "due_at": now(), "error": detail}
    session.execute(update(OutboxRow).where(OutboxRow.message.in_(deliveries)).values(**due))


class Dispatcher:
    """Sends what is due. Several may run at once, in several processes: a message is taken by one of them.

    `ae_title` is ours. `lease_seconds`: after that long without a word, another may take over an attempt.
    `wait_seconds`: how long an attempt waits for an answer about storage commitment; `ask_seconds`: how long after an
    unanswered request the next one follows, twice as long each time.
    """

    def __init__(
        self,
        stores: Stores,
        destinations: Sequence[Destination],
        *,
        ae_title: str,
        lease_seconds: float = 180.0,
        wait_seconds: float = 2.0,
        ask_seconds: float = 300.0,
    ) -> None:
        self._stores, self._catalog = stores, stores.catalog
        self._destinations = {destination.name: destination for destination in destinations}
        self._ae_title = ae_title
        self._lease_seconds, self._wait_seconds, self._ask_seconds = lease_seconds, wait_seconds, ask_seconds
        self._outbox = Outbox(stores.catalog)
        self._commitments = Commitments(stores.catalog, stores.pseudonymizer)

    def attempt(self, delivery: DeliveryRef) -> Delivered:
        """Send one delivery now, if it is due and nobody else is at it; else tell how it stands.

        A destination that is away is no error: the state is "waiting" then, and `detail` says why. Raises
        NotFoundError for a delivery that was never enqueued, TransientError where the catalog or a store is away.
        """
        row = self._row(delivery.key)
        message = self._outbox.take_one(delivery.key, lease_seconds=self._lease_seconds)
        if message is None:
            return _told(row)
        try:
            self._send(row, message)
        except TransientError as error:
            # `where` is the destination's name, or the store that is away.
            self._outbox.postponed(message.message, str(error), attempts=message.attempts)
            self._catalog.change(DeliveryRow, DeliveryRow.delivery == row.delivery, detail=str(error))
        except NocturneError as error:
            self._record(row, "refused", f"{error.reason}: {error}")
        return _told(self._row(delivery.key))

    def see_through(self, delivery: DeliveryRef, *, seconds: float = 60.0) -> Delivered:
        """As `attempt`; where another process was quicker and is at its first attempt, wait for what comes of it."""
        deadline = time.monotonic() + seconds
        told = self.attempt(delivery)
        while told.state == "waiting" and not told.detail and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            told = self.attempt(delivery)
        return told

    def run_due(self, limit: int = 10) -> int:
        """Attempt what is due, and see to storage commitments. Returns how many deliveries it moved or tried.

        A destination that proves to be away is not tried again in the same call.
        """
        done = self._see_to_commitments()
        away: set[str] = set()
        tried: set[str] = set()
        while len(tried) < limit and (delivery := self._next_due(away, tried)) is not None:
            tried.add(delivery)
            told = self.attempt(DeliveryRef.to(delivery))
            if told.state == "waiting":
                away.add(told.destination)
        return done + len(tried)

    # -- one attempt --------------------------------------------------------------------------------------------

    def _send(self, row: DeliveryRow, message: Message) -> None:
        destination = self._destinations.get(row.destination)
        if destination is None:
            raise TransientError(
                "no destination of this name is set up",
                where=row.destination,
                hint="put it back into `destinations`, or restart what was started before it was there",
                reason="no-destination",
            )
        results = make(self._stores, _analysis(self._stores, row.analysis), pictures=destination.overview)
        # Before anything leaves: whoever watches the PACS must know our own results when they appear.
        objects = [{"kind": r.kind, "uid": self._stores.pseudonymizer.uid(r.uid)} for r in results]
        self._catalog.change(DeliveryRow, DeliveryRow.delivery == row.delivery, objects=objects)
        # What the other side lists and yet does not keep has to be sent, not looked for.
        denied = self._commitments.standing(row.delivery).standing == "failed"
        again = message.attempts > 1 and not denied
        sent = self._sender(destination, row.delivery).send(results, again=again)
        self._settle(row, results, sent)

    def _sender(self, destination: Destination, delivery: str) -> Sender:
        match destination.kind:
            case "dicom":
                return self._dimse(destination, delivery)
            case "dicomweb":
                return DicomwebSender(destination)
            case "folder":
                return FolderSender(destination)

    def _dimse(self, destination: Destination, delivery: str) -> DimseSender:
        return DimseSender(
            destination,
            self._commitments,
            ae_title=self._ae_title,
            delivery=delivery,
            wait_seconds=self._wait_seconds,
        )

    def _settle(self, row: DeliveryRow, results: Sequence[Result], sent: Sent) -> None:
        if sent.refused:
            arrived = [r.kind for r in results if r.uid in sent.accepted]
            rest = f"; arrived: {', '.join(arrived)}" if arrived else ""
            self._record(row, "refused", f"{row.destination}: {sent.detail}{rest}")
        else:
            self._record(row, "committed" if sent.safe else "sent", sent.detail)

    def _record(self, row: DeliveryRow, state: State, detail: str) -> None:
        """What came of it and the message's end, in one transaction."""
        moment = now()
        values: dict[str, Any] = {"state": state, "detail": detail}
        if state in ("sent", "committed"):
            values["sent_at"] = row.sent_at or moment
        if state == "committed":
            values["committed_at"] = moment
        error = detail if state == "refused" else ""
        with self._catalog.transaction() as session:
            session.execute(update(DeliveryRow).where(DeliveryRow.delivery == row.delivery).values(**values))
            session.execute(
                update(OutboxRow).where(OutboxRow.message == row.delivery).values(done_at=moment, error=error)
            )

    def _next_due(self, away: set[str], tried: set[str]) -> str | None:
        due = (
            select(DeliveryRow.delivery)
            .join(OutboxRow, OutboxRow.message == DeliveryRow.delivery)
            .where(OutboxRow.kind == KIND, OutboxRow.done_at.is_(None), OutboxRow.due_at <= now())
            .where(DeliveryRow.destination.not_in(list(away)), DeliveryRow.delivery.not_in(list(tried)))
            .order_by(OutboxRow.due_at)
            .limit(1)
        )
        with self._catalog.reading() as session:
            return session.scalar(due)

    # -- storage commitment -------------------------------------------------------------------------------------

    def _see_to_commitments(self) -> int:
        """Look at what was sent and not yet committed: answers, denials, silence."""
        recent = select(CommitmentRow.delivery).where(CommitmentRow.asked_at > now() - REMEMBERED)
        asked = select(DeliveryRow).where(DeliveryRow.state == "sent", DeliveryRow.delivery.in_(recent))
        with self._catalog.reading() as session:
            rows = session.scalars(asked).all()
        return sum(self._see_to(row) for row in rows)

    def _see_to(self, row: DeliveryRow) -> bool:
        standing = self._commitments.standing(row.delivery)
        last = standing.last
        if last is None:
            return False
        if standing.standing == "committed":
            self._record(row, "committed", "")
        elif standing.standing == "failed" and standing.failures < MOST_ASKED:
            self._send_again(row)
        elif standing.standing == "failed":
            self._record(row, "refused", f"{row.destination}: does not keep what it was sent, {MOST_ASKED} times over")
        elif standing.count < MOST_ASKED and last.asked_at + self._patience(standing.count) < now():
            return self._ask_again(row, last)
        else:
            return False
        return True

    def _patience(self, asked: int) -> timedelta:
        return timedelta(seconds=self._ask_seconds * 2 ** (asked - 1))

    def _send_again(self, row: DeliveryRow) -> None:
        """What the other side did not keep is due again."""
        detail = f"{row.destination}: did not keep what it was sent; it is sent again"
        with self._catalog.transaction() as session:
            due_again(session, [row.delivery], detail)

    def _ask_again(self, row: DeliveryRow, last: CommitmentRow) -> bool:
        destination = self._destinations.get(row.destination)
        if destination is None:
            return False
        known = known_uids(self._stores, _analysis(self._stores, row.analysis))
        try:
            safe, note = self._dimse(destination, row.delivery).ask([known[part["uid"]] for part in row.objects])
        except TransientError as error:
            # As if asked just now: a PACS that is away is not knocked at every second.
            self._catalog.change(CommitmentRow, CommitmentRow.transaction == last.transaction, asked_at=now())
            safe, note = False, str(error)
        if safe:
            self._record(row, "committed", "")
        else:
            self._catalog.change(DeliveryRow, DeliveryRow.delivery == row.delivery, detail=note)
        return True

    def _row(self, delivery: str) -> DeliveryRow:
        row = self._catalog.get(DeliveryRow, delivery)
        if row is None:
            raise NotFoundError("no such delivery", where=delivery)
        return row


def _analysis(stores: Stores, key: str) -> AnalysisRow:
    row = stores.catalog.get(AnalysisRow, key)
    if row is None:
        raise NotFoundError("no such analysis", where=key)
    return row


def _told(row: DeliveryRow) -> Delivered:
    return Delivered(row.delivery, row.destination, row.state, row.detail, len(row.objects))
