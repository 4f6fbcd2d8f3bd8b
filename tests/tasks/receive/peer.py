"""Senders for tests: pynetdicom's, patient, and with what it loses between its threads put right."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from tasks.associations import Refusals, steadied
from tests.components import until

PATIENCE = 180.0
"""Seconds for whatever is certain to happen."""


def sender(title: str = "SCU") -> AE:
    """An AE that waits long for every answer."""
    ae = AE(title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = PATIENCE
    return ae


def associate(ae: AE, port: int, *, handlers: Iterable[Any] = (), **options: Any) -> Association:
    """Ask for an association on loopback; `is_established` or `is_rejected` says what came of it."""
    refusals = Refusals()
    assoc = ae.associate("127.0.0.1", port, evt_handlers=[*steadied(refusals), *handlers], **options)
    assoc.is_rejected = assoc.is_rejected or refusals.heard is not None
    return assoc


def unhurried(assoc: Association) -> None:
    """Let reports come at any time: pynetdicom takes one that comes first for the answer that it waits for.

    Nor does it keep apart what its two threads send: an answer to a report, and the next request.
    """
    assoc.dimse.msg_queue = _Sorted()
    sending, send = threading.Lock(), assoc.dimse.send_msg

    def whole(primitive: Any, context_id: int) -> None:
        with sending:
            send(primitive, context_id)

    assoc.dimse.send_msg = whole  # type: ignore[method-assign]


class _Sorted(Queue[Any]):
    """Who waits gets answers; who does not wait, as pynetdicom's own thread, gets what is asked of us."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: Queue[Any] = Queue()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        report = isinstance(item[1], N_EVENT_REPORT) and item[1].MessageIDBeingRespondedTo is None
        (self._asked if report else super()).put(item, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return (super() if block else self._asked).get(block, timeout)


# -- storage commitment --------------------------------------------------------------------------------------------


class Answers:
    """What a requester is told, on whichever association."""

    def __init__(self) -> None:
        self._found: Queue[tuple[int, Dataset]] = Queue()
        self._reports = self._confirmed = 0
        self.handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self._tell), (evt.EVT_PDU_SENT, self._sent)]

    def next(self) -> tuple[int, Dataset]:
        """The next result."""
        return self._found.get(timeout=PATIENCE)

    def settle(self) -> None:
        """Wait until all receipts have gone out: pynetdicom's release does not."""
        until(lambda: self._confirmed == self._reports, "results to be confirmed")

    def _tell(self, event: Any) -> tuple[int, None]:
        self._reports += 1
        self._found.put((event.event_type, event.event_information))
        return 0, None

    def _sent(self, event: Any) -> None:
        command_field = struct.pack("<HHLH", 0, 0x0100, 2, 0x8100)
        self._confirmed += command_field in event.pdu.encode()


def requester(title: str = "SCU") -> AE:
    """A sender that asks for storage commitment too."""
    ae = sender(title)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    ae.add_requested_context(StorageCommitmentPushModel)
    return ae


@contextmanager
def opened(port: int, answers: Answers, ae: AE | None = None, **options: Any) -> Iterator[Association]:
    """A requester's association; it ends once every report has been confirmed."""
    assoc = associate(ae or requester(), port, handlers=answers.handlers, **options)
    assert assoc.is_established
    try:
        yield assoc
        answers.settle()
    finally:
        if assoc.is_established:
            assoc.release()


def ask(assoc: Association, *references: tuple[str, str], transaction: str | None = None, action: int = 1) -> int:
    """N-ACTION about instances, by SOP class and UID; returns its status."""
    wanted = Dataset()
    wanted.TransactionUID = transaction or generate_uid()
    wanted.ReferencedSOPSequence = [reference(*one) for one in references]
    answer, _ = assoc.send_n_action(wanted, action, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    return int(answer.Status)


def reference(sop_class: str, sop: str) -> Dataset:
    """An item that names an instance."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
    return item


def of(ds: Dataset) -> tuple[str, str]:
    """SOP class and UID of an instance."""
    return str(ds.SOPClassUID), str(ds.SOPInstanceUID)
