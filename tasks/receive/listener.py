"""The DICOM listener: who may send, what is kept, and which status each instance gets.

Success means that the instance is synced under its final name. Everything that is refused gets the status by which a
sender can tell whether trying again may help.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from functools import cache
from ipaddress import ip_network
from types import TracebackType
from typing import Any, Final, Self

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID, AllTransferSyntaxes, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from models.errors import BadInputError, HeaderError, NocturneError, ServiceUnavailableError, TransientError
from models.hospital import Caller
from models.hospital import Listener as Settings
from models.pseudonyms import Pseudonymizer
from tasks.receive.commitment import Commitment, Requester
from tasks.receive.reception import Reception
from tasks.receive.transport import Address, Gate, Server, tls_context
from tasks.receive.upper_layer import Incoming, Limits, StoreRequest
from tasks.receive.watermark import Watermark
from tasks.stores.catalog import Catalog
from tasks.stores.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

SUCCESS: Final = 0x0000
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
OUT_OF_RESOURCES: Final = 0xA700
DOES_NOT_MATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
SWITCH_SECONDS: Final = 0.0005
STOP_SECONDS: Final = 8.0
"""How long an instance that is being received may take when the listener is stopped."""

# Result, source and reason of a rejection (PS3.8 table 9-21).
_NOT_RECOGNISED = (1, 1, 3)
_CONGESTION = (2, 3, 1)
_LIMIT_EXCEEDED = (2, 3, 2)

log = logging.getLogger(__name__)


class Listener:
    """The C-STORE, C-ECHO and storage commitment SCP of one installation.

    `requesters` says where those are found, by AE title, who ask for storage commitment and close the association
    before it is answered.
    """

    def __init__(
        self,
        settings: Settings,
        reception: Reception,
        catalog: Catalog,
        pseudonymizer: Pseudonymizer,
        *,
        requesters: Mapping[str, Requester] | None = None,
    ) -> None:
        self._settings, self._reception = settings, reception
        self._commitment = Commitment(
            reception, catalog, pseudonymizer, ae_title=settings.ae_title, requesters=requesters or {}
        )
        self._watermark = Watermark(reception.spool, catalog, settings.free_bytes)
        self._gate = Gate(settings.associations, settings.associations_per_peer)
        self._figures: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server: Server | None = None

    def start(self) -> None:
        """Listen. Raises ServiceUnavailableError where the port is taken, SettingsError for bad certificates."""
        self._server = self._bind()
        # What goes wrong is told here, in our words; pynetdicom's own name the peers and quote what they sent.
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        # With the usual 5 ms every thread that comes back from a system call waits that long while rows are written.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="listener", daemon=True).start()

    def stop(self) -> None:
        """Stop listening; what is being received is finished, within limits."""
        if self._server is not None:
            self._server.stop(STOP_SECONDS)
            self._server = None
        self._commitment.close()

    @property
    def port(self) -> int:
        """Where it listens, also where the settings leave the choice to the system."""
        if self._server is None:
            raise ServiceUnavailableError("the listener does not run", where="listener")
        return int(self._server.server_address[1])

    def figures(self) -> dict[str, int]:
        """What has happened since the start, and what is going on now."""
        names = ("received", "kept", "resent", "quarantined", "refused", "bytes", "accepted", "rejected")
        with self._lock:
            counted = {name: self._figures[name] for name in names}
        return counted | {
            "turned_away": self._server.turned_away if self._server else 0,
            "associations": self._gate.associations,
            "connections": self._gate.connections,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- instances ----------------------------------------------------------------------------------------------

    def _store(self, request: StoreRequest, parts: Incoming) -> tuple[int, str]:
        self._count("received")
        if request.sop_class != request.abstract_syntax:
            self._count("refused")
            return SOP_CLASS_NOT_SUPPORTED, "not the SOP class of the presentation context"
        try:
            stored = self._reception.take(
                parts,
                sop_class=request.sop_class,
                sop_instance=request.sop_instance,
                transfer_syntax=request.transfer_syntax,
            )
        except HeaderError as error:
            self._count("quarantined")
            return (DOES_NOT_MATCH if error.reason == "sop-mismatch" else CANNOT_UNDERSTAND), error.what
        except (BadInputError, TransientError) as error:
            self._count("refused")
            log.warning("an instance is refused: %s", error)
            return OUT_OF_RESOURCES, error.what
        self._count("kept" if stored.new else "resent")
        self._count("bytes", stored.bytes)
        return SUCCESS, ""

    # -- associations -------------------------------------------------------------------------------------------

    def _requested(self, event: Any) -> None:
        try:
            refusal = self._refusal(event.assoc)
        except Exception as error:  # noqa: BLE001 pynetdicom would go on and accept it
            log.error("an association is rejected (%s)", error if isinstance(error, NocturneError) else type(error))
            refusal = _CONGESTION
        self._count("rejected" if refusal else "accepted")
        if refusal:
            event.assoc.acse.send_reject(*refusal)
            event.assoc.kill()  # waits until it is sent

    def _refusal(self, assoc: Any) -> tuple[int, int, int] | None:
        title = str(assoc.requestor.primitive.calling_ae_title or "").strip()
        if self._settings.callers and not any(_is(caller, title, assoc.peer) for caller in self._settings.callers):
            log.warning("an association is rejected: a caller that is not on the list")
            return _NOT_RECOGNISED
        if not self._watermark.holds():
            return _CONGESTION
        if self._server is None or not self._server.admit(assoc):
            log.warning("an association is rejected: too many at once")
            return _LIMIT_EXCEEDED
        return None

    def _allowed(self, peer: Address) -> bool:
        """Whether any caller may come from this address: others need not be listened to."""
        callers = self._settings.callers
        return not callers or any(_from(caller, peer) for caller in callers)

    def _bind(self) -> Server:
        s = self._settings
        ae = AE(ae_title=s.ae_title)
        ae.maximum_associations = 1 << 30  # ours are counted at the gate
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION
        tls = tls_context(s.tls) if s.tls else None
        try:
            return Server(
                ae,
                (s.host, s.port),
                supported_contexts(),
                limits=Limits(s.max_pdu_bytes, s.max_instance_bytes, s.network_seconds, s.idle_seconds),
                gate=self._gate,
                store=self._store,
                allowed=self._allowed,
                handlers={
                    evt.EVT_REQUESTED: self._requested,
                    evt.EVT_N_ACTION: self._commitment.asked,
                    evt.EVT_N_EVENT_REPORT: self._commitment.answered,
                },
                tls=tls,
            )
        except OSError as error:
            raise ServiceUnavailableError(
                f"cannot listen on {s.host}:{s.port}: {error.strerror}",
                where="listener",
                hint="is something else listening there? see listener.host and listener.port",
            ) from None

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._figures[name] += by


@cache
def supported_contexts() -> list[PresentationContext]:
    """Every storage class that the standard has or had, in every transfer syntax; verification; commitment."""
    plain: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    syntaxes = [*plain, *(syntax for syntax in AllTransferSyntaxes if syntax not in plain)]
    storage = {str(context.abstract_syntax) for context in AllStoragePresentationContexts} | _retired()
    found = [build_context(uid, syntaxes) for uid in sorted(storage)]
    commitment = build_context(StorageCommitmentPushModel, plain)
    commitment.scu_role = commitment.scp_role = True  # it is asked of us, and what we asked for is answered to us
    return [*found, build_context(Verification, plain), commitment]


def _retired() -> set[str]:
    return {
        uid
        for uid, (name, kind, _, retired, _) in UID_dictionary.items()
        if kind == "SOP Class" and retired and "Storage" in name and uid.startswith("1.2.840.10008.5.1.4.1.1.")
    }


def _is(caller: Caller, title: str, peer: Address) -> bool:
    return caller.ae_title == title and _from(caller, peer)


def _from(caller: Caller, peer: Address) -> bool:
    return not caller.addresses or any(peer in ip_network(network, strict=False) for network in caller.addresses)
