"""Storage commitment (PS3.4 annex J), both ways: asked of us by a sender, and answered to us by a PACS.

A sender that asks has sent what it had to send: its studies are told whole. The answer goes out on the association on
which it was asked while that is open, else on a new one to where the requester is known to be.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Final

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from models.errors import HeaderError, NocturneError
from models.hospital import Tls
from models.pseudonyms import Pseudonymizer
from tasks.associations import client_context, steadied
from tasks.receive.reception import Reception
from tasks.receive.transport import AcceptedAssociation
from tasks.stores.catalog import Catalog
from tasks.stores.peek import is_uid
from tasks.stores.tables import CommitmentRow, InstanceRow, now

ALL_SAFE: Final = 1
SOME_FAILED: Final = 2
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119
PROCESSING_FAILURE: Final = 0x0110
_SUCCESS, _NO_SUCH_ACTION, _INVALID, _LIMITED = 0x0000, 0x0123, 0x0115, 0x0213
MOST_REFERENCES: Final = 100_000
_PENDING, _WORKERS = 256, 4
_FLUSH_SECONDS, _CALL_SECONDS = 30.0, 10.0
_RELEASE_SECONDS = 1.0  # a requester with an address of its own is given so long to end the association
_PAUSES = (0.0, 2.0, 10.0, 30.0)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Requester:
    """Where somebody who asks for storage commitment can be called."""

    host: str
    port: int
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class _Reference:
    sop_class: str
    sop: str
    failure: int | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    transaction: str
    references: tuple[_Reference, ...]
    title: str
    assoc: AcceptedAssociation = field(repr=False)


class Commitment:
    """Answers what is asked and takes what is answered; owns a few threads for the answers."""

    def __init__(
        self,
        reception: Reception,
        catalog: Catalog,
        pseudonymizer: Pseudonymizer,
        *,
        ae_title: str,
        requesters: Mapping[str, Requester],
    ) -> None:
        self._reception, self._catalog, self._pseudonymizer = reception, catalog, pseudonymizer
        self._ae_title, self._requesters = ae_title, requesters
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="commitment")
        self._room = threading.BoundedSemaphore(_PENDING)
        self._closing = threading.Event()

    def close(self) -> None:
        """Answer nothing more."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- asked of us --------------------------------------------------------------------------------------------

    def asked(self, event: Any) -> tuple[int, None]:
        """N-ACTION: take the request; its answer is an event of its own."""
        if event.action_type != 1:
            return _NO_SUCH_ACTION, None
        try:
            request = _read(event)
        except (HeaderError, AttributeError, TypeError, ValueError, KeyError):
            return _INVALID, None
        if self._closing.is_set() or not self._room.acquire(blocking=False):
            return _LIMITED, None
        self._pool.submit(self._answer, request)
        return _SUCCESS, None

    def _answer(self, request: _Request) -> None:
        try:
            judged, studies = self._judge(request.references)
            if all(reference.failure is None for reference in judged):
                for study in sorted(studies):
                    self._reception.told_whole_study(study)
            self._report(request, _result(request.transaction, judged))
        except NocturneError as error:
            log.error("a storage commitment could not be answered: %s", error)
        except Exception as error:  # noqa: BLE001 foreign errors may quote the request
            log.error("a storage commitment could not be answered (%s)", type(error).__name__)
        finally:
            self._room.release()

    def _judge(self, references: Sequence[_Reference]) -> tuple[list[_Reference], set[str]]:
        """Each with what is wrong with it, and the studies of those that are safe."""
        self._reception.flush(_FLUSH_SECONDS)
        names = {reference.sop: self._pseudonymizer.uid(reference.sop) for reference in references}
        rows = self._rows(list(names.values()))
        judged, studies = [], set()
        for reference in references:
            found = [row for row in rows.get(names[reference.sop], []) if self._on_disk(row)]
            fitting = [row for row in found if row.sop_class == reference.sop_class]
            failure = None if fitting else CLASS_CONFLICT if found else NO_SUCH_INSTANCE
            judged.append(_Reference(reference.sop_class, reference.sop, failure))
            studies |= {row.study for row in fitting}
        return judged, studies

    def _rows(self, sop_uids: Sequence[str]) -> dict[str, list[InstanceRow]]:
        found: dict[str, list[InstanceRow]] = {}
        for row in self._catalog.among(InstanceRow, InstanceRow.sop_uid, sop_uids):
            found.setdefault(row.sop_uid, []).append(row)
        return found

    def _on_disk(self, row: InstanceRow) -> bool:
        return self._reception.spool.path(row.study, row.instance).is_file()

    def _report(self, request: _Request, result: Dataset) -> None:
        with request.assoc.serving:
            pass  # the request itself is answered first
        requester = self._requesters.get(request.title)
        until = monotonic() + (_RELEASE_SECONDS if requester else 0.0)
        while request.assoc.is_established and monotonic() < until:
            sleep(0.02)
        if request.assoc.report(_kind(result), result, _CALL_SECONDS):
            return
        if requester is None:
            log.warning("a storage commitment stays unanswered: its requester has gone, and where it is is not known")
            return
        for pause in _PAUSES:
            if self._closing.wait(pause):
                return
            if self._call(request.title, requester, result):
                return
        log.warning("a storage commitment stays unanswered: its requester does not take the answer")

    def _call(self, title: str, requester: Requester, result: Dataset) -> bool:
        ae = AE(ae_title=self._ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = ae.network_timeout = _CALL_SECONDS
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        tls = (client_context(requester.tls), requester.host) if requester.tls else None
        assoc = ae.associate(
            requester.host, requester.port, ae_title=title, ext_neg=[role], tls_args=tls, evt_handlers=steadied()
        )
        try:
            return assoc.is_established and _send(assoc, result)
        finally:
            if assoc.is_established:
                assoc.release()

    # -- answered to us -----------------------------------------------------------------------------------------

    def answered(self, event: Any) -> tuple[int, None]:
        """N-EVENT-REPORT: a PACS says which of our results are safe with it."""
        try:
            said = event.event_information
            transaction = self._pseudonymizer.uid(str(said.TransactionUID))
            failed = [
                self._pseudonymizer.uid(str(item.ReferencedSOPInstanceUID))
                for item in said.get("FailedSOPSequence") or []
            ]
        except (HeaderError, AttributeError, TypeError, ValueError, KeyError):
            return _INVALID, None
        try:
            changed = self._catalog.change(
                CommitmentRow, CommitmentRow.transaction == transaction, answered_at=now(), failed=failed
            )
        except NocturneError as error:
            log.warning("the answer to a storage commitment could not be kept: %s", error)
            return PROCESSING_FAILURE, None
        return (_SUCCESS if changed else PROCESSING_FAILURE), None


def _read(event: Any) -> _Request:
    asked = event.action_information
    transaction = str(asked.TransactionUID)
    items = asked.ReferencedSOPSequence
    if not is_uid(transaction) or len(items) > MOST_REFERENCES:
        raise ValueError
    references = tuple(_Reference(str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID)) for i in items)
    if not all(is_uid(reference.sop) for reference in references):
        raise ValueError
    title = str(event.assoc.requestor.primitive.calling_ae_title or "").strip()
    return _Request(transaction, references, title, event.assoc)


def _result(transaction: str, judged: Iterable[_Reference]) -> Dataset:
    safe: list[Dataset] = []
    failed: list[Dataset] = []
    for reference in judged:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference.sop_class, reference.sop
        if reference.failure is not None:
            item.FailureReason = reference.failure
        (safe if reference.failure is None else failed).append(item)
    result = Dataset()
    result.TransactionUID = transaction
    if safe:
        result.ReferencedSOPSequence = safe
    if failed:
        result.FailedSOPSequence = failed
    return result


def _kind(result: Dataset) -> int:
    return SOME_FAILED if "FailedSOPSequence" in result else ALL_SAFE


def _send(assoc: Association, result: Dataset) -> bool:
    try:
        status, _ = assoc.send_n_event_report(
            result, _kind(result), StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    except (RuntimeError, ValueError):  # it was closed in the meantime
        return False
    return "Status" in status
