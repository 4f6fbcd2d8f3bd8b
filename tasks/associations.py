"""What every association that we open needs, whatever it is for: its thread kept in turn, its delays off, its TLS.

pynetdicom's own log is switched off here: it quotes what is sent. What goes wrong is told by whoever opened it.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from contextlib import suppress
from typing import Any, Final

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ

from models.hospital import Tls

PERMANENT: Final = 1
"""A rejection's result (PS3.8 table 9-21)."""
_LOOK_SECONDS: Final = 0.02

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


class Refusals:
    """Hears a rejection. pynetdicom 3.0.4 itself forgets one that comes before it has looked at its own socket."""

    def __init__(self) -> None:
        self.heard: A_ASSOCIATE_RJ | None = None

    def hear(self, event: Any) -> None:
        """Whatever comes from the peer."""
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            self.heard = event.pdu


def steadied(refusals: Refusals | None = None) -> list[Any]:
    """Event handlers for `AE.associate`."""
    heard = [(evt.EVT_PDU_RECV, refusals.hear)] if refusals else []
    return [(evt.EVT_CONN_OPEN, _without_delay), (evt.EVT_ESTABLISHED, _take_turns), *heard]


def client_context(tls: Tls) -> ssl.SSLContext:
    """Our side of mutual TLS (PS3.15 B.12): the authority's signature counts, as devices rarely bear host names.

    Raises OSError (ssl.SSLError is one) where the files cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(tls.authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def _without_delay(event: Any) -> None:
    with suppress(OSError, AttributeError):  # a matter of speed alone
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _take_turns(event: Any) -> None:
    event.assoc._reactor_checkpoint = _Checkpoint(event.assoc)


class _Checkpoint(threading.Event):
    """Where pynetdicom's own thread waits while a request of ours is answered.

    In pynetdicom 3.0.4 that thread may be let through, and be taken for waiting still, while the next request is
    sent: it takes the first answer off the queue then, and the answer is lost without a word.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Until the way is free, and everybody can see that we are on it."""
        if timeout is not None:
            return super().wait(timeout)
        while True:
            while not super().wait(_LOOK_SECONDS):
                # Said again and again: whoever waits for this word waits without a bound.
                self._association._is_paused = True
            self._association._is_paused = False
            if self.is_set():
                return True
            self._association._is_paused = True
