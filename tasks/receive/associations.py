"""Associations that we open to a peer that answers queries."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pydicom.uid import UID
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from models.errors import NocturneError, ServiceUnavailableError, SettingsError
from models.hospital import Peer, Tls
from tasks.associations import PERMANENT, Refusals, client_context, steadied

CONNECT_SECONDS: Final = 15.0
PATIENCE_SECONDS: Final = 300.0
"""Longest silence of a peer that is searching, or fetching from its slow store."""
_MAX_PDU: Final = 128 << 10
_CALLED_NOT_KNOWN, _CALLING_NOT_KNOWN = 7, 3  # reasons of a rejection (PS3.8 table 9-21)


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
    refusals = Refusals()
    association = ae.associate(
        peer.host,
        peer.port,
        contexts=[build_context(service), *contexts],
        ae_title=peer.ae_title,
        max_pdu=_MAX_PDU,
        ext_neg=list(roles),
        tls_args=(tls_context(peer.tls, peer.name), peer.host) if peer.tls else None,
        evt_handlers=[
            *steadied(refusals),
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
        return client_context(tls)
    except OSError as error:
        raise SettingsError(
            f"its certificates cannot be used: {error.strerror or type(error).__name__}", where=where
        ) from None


def _why_not(association: Association, refusals: Refusals, peer: Peer) -> NocturneError:
    refusal = refusals.heard
    if refusal is not None and refusal.result == PERMANENT:
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
