"""Senders for tests: pynetdicom's, patient, and with what it loses between its threads put right."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from queue import Queue
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT

from tasks.associations import Refusals, steadied

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
