"""Associations that we open to a peer that answers queries."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from pydicom.uid import UID
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from models.errors import NocturneError, ServiceUnavailableError, SettingsError
from models.hospital import Peer, Tls

CONNECT_SECONDS: Final = 15.0
PATIENCE_SECONDS: Final = 300.0
"""Longest silence of a peer that is searching, or fetching from its slow store."""
_MAX_PDU: Final = 128 << 10
_CALLED_NOT_KNOWN, _CALLING_NOT_KNOWN = 7, 3  # reasons of a rejection (PS3.8 table 9-21)
_PERMANENT: Final = 1

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it quotes what is sent; what goes wrong is told here


@contextmanager
def associated(
    peer: Peer,
    ae_title: str,
    service: UID,
    *,
    contexts: Sequence[PresentationContext] = (),
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """An association for `service`, released at the end, and `contexts` beside it.

    Raises ServiceUnavailableError or SettingsError, naming the peer.
    """
    ae = AE(ae_title=ae_title)
    ae.connection_timeout = ae.acse_timeout = CONNECT_SECONDS
    ae.dimse_timeout = ae.network_timeout = PATIENCE_SECONDS
    refusals = _Refusals()
    association = ae.associate(
        peer.host,
        peer.port,
        contexts=[build_context(service), *contexts],
        ae_title=peer.ae_title,
        max_pdu=_MAX_PDU,
        ext_neg=list(roles),
        tls_args=(tls_context(peer.tls, peer.name), peer.host) if peer.tls else None,
        evt_handlers=[
            (evt.EVT_CONN_OPEN, _without_delay),
            (evt.EVT_PDU_RECV, refusals.hear),
            (evt.EVT_ESTABLISHED, _take_turns),
            *handlers,
        ],
    )
    if not association.is_established:
        raise _why_not(association, refusals, peer)
    try:
        if not any(context.abstract_syntax == service for context in association.accepted_contexts):
            raise SettingsError(
                f"does not offer {service.name}", where=peer.name, hint="see `retrieve` in the peer's settings"
            )
        yield association
    except RuntimeError as error:
        if isinstance(error, NocturneError):
            raise
        # pynetdicom's word for an association that ended between two messages.
        raise ServiceUnavailableError("closed the association", where=peer.name) from None
    finally:
        if association.is_established:
            association.release()


def tls_context(tls: Tls, where: str) -> ssl.SSLContext:
    """Mutual TLS as a client."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(tls.authority))
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise SettingsError(
            f"its certificates cannot be used: {error.strerror or type(error).__name__}", where=where
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # PS3.15 B.12: the certificate is checked; devices rarely bear host names
    return context


def _without_delay(event: Any) -> None:
    with suppress(OSError, AttributeError):  # a matter of speed alone
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _take_turns(event: Any) -> None:
    event.assoc._reactor_checkpoint = _Checkpoint(event.assoc)


class _Checkpoint(threading.Event):
    """Where pynetdicom's own thread waits while a request of ours is answered.

    In pynetdicom 3.0.4 that thread may be let through, and be taken for waiting still, while the next request is
    sent: it takes the first answer off the queue then, and a match is lost without a word.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Until the way is free, and everybody can see that we are on it."""
        while True:
            super().wait(timeout)
            self._association._is_paused = False
            if self.is_set() or timeout is not None:
                return self.is_set()
            self._association._is_paused = True


class _Refusals:
    """Hears a rejection. pynetdicom 3.0.4 itself forgets one that comes before it has looked at its own socket."""

    def __init__(self) -> None:
        self.heard: A_ASSOCIATE_RJ | None = None

    def hear(self, event: Any) -> None:
        """Whatever comes from the peer."""
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            self.heard = event.pdu


def _why_not(association: Association, refusals: _Refusals, peer: Peer) -> NocturneError:
    refusal = refusals.heard
    if refusal is not None and refusal.result == _PERMANENT:
        reasons = {_CALLING_NOT_KNOWN: "does not know our AE title", _CALLED_NOT_KNOWN: "has another AE title"}
        return SettingsError(
            reasons.get(refusal.reason_diagnostic or 0, "rejects the association"),
            where=peer.name,
            hint="compare the AE titles, ours and the peer's, with the peer's own configuration",
        )
    if refusal is not None:
        return ServiceUnavailableError("has no association to spare", where=peer.name)
    if association.rejected_contexts and not association.accepted_contexts:
        return SettingsError("offers none of the services that are asked for", where=peer.name)
    return ServiceUnavailableError(
        "does not answer", where=peer.name, hint="is it running, and are host and port right?", reason="unreachable"
    )
