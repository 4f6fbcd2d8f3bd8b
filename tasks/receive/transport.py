"""TCP and TLS under the listener: pynetdicom's server with a bound on everything that a peer can claim or hold.

What pynetdicom 3.0.4 leaves open and is closed here: the TLS handshake runs in the connection's own thread with a
time-out, so that a silent peer blocks nobody; a PDU's length is checked before memory is taken; what has begun and does
not go on is closed; connections are counted per address, whether or not they ever ask for an association, and the
silent ones make room for others; and a disk that is full fails one instance instead of the association.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import cycle
from queue import Queue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from pynetdicom.transport import AddressInformation, AssociationSocket, RequestHandler, ThreadedAssociationServer

from models.errors import SettingsError
from models.hospital import Tls
from tasks.receive.upper_layer import Limits, Store, UpperLayer

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.presentation import PresentationContext

Address = IPv4Address | IPv6Address
SPARE_CONNECTIONS: Final = 4
"""Connections beyond the associations that are allowed: they can be refused in words instead of being cut off."""
SILENT_SECONDS: Final = 0.5
"""After which a connection that has asked for nothing may have to make room."""
_LOOK_SECONDS = 0.1  # how often a quiet association looks at its timers

log = logging.getLogger(__name__)


def plain_address(text: str) -> Address:
    """An address; an IPv4 address in IPv6's clothes is an IPv4 address."""
    found = ip_address(text.partition("%")[0])
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Mutual TLS, 1.2 or later: a peer without a certificate from our authority does not get in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.authority)
    except OSError as error:
        raise SettingsError(
            f"the listener's certificates cannot be used: {error.strerror or type(error).__name__}", where="listener"
        ) from None
    return context


class Gate:
    """Counts connections and associations, in all and by address."""

    def __init__(self, associations: int, per_peer: int) -> None:
        self._most, self._most_per_peer = associations, per_peer
        self._lock = threading.Lock()
        self._connected: Counter[Address] = Counter()
        self._admitted: Counter[Address] = Counter()

    @property
    def associations(self) -> int:
        """How many there are now."""
        return self._admitted.total()

    @property
    def connections(self) -> int:
        """How many there are now, associations or not."""
        return self._connected.total()

    def enter(self, peer: Address) -> bool:
        """A connection; False where there are too many."""
        return self._add(self._connected, peer, SPARE_CONNECTIONS)

    def admit(self, peer: Address) -> bool:
        """An association on a connection; False where there are too many."""
        return self._add(self._admitted, peer, 0)

    def crowded(self, peer: Address) -> bool:
        """Whether this address has as many connections as one may have."""
        with self._lock:
            return self._connected[peer] >= self._most_per_peer + SPARE_CONNECTIONS

    def leave(self, peer: Address, *, admitted: bool) -> None:
        """The connection is closed."""
        with self._lock:
            for counted in (self._connected, self._admitted) if admitted else (self._connected,):
                counted[peer] -= 1
                if not counted[peer]:
                    del counted[peer]

    def _add(self, counted: Counter[Address], peer: Address, spare: int) -> bool:
        with self._lock:
            if counted.total() >= self._most + 2 * spare or counted[peer] >= self._most_per_peer + spare:
                return False
            counted[peer] += 1
            return True


@dataclass(eq=False)
class Entrance:
    """A connection that was let in, from its first moment: it may not have said anything yet."""

    address: Any  # with the port: as the system says it
    socket: socket.socket
    since: float = field(default_factory=monotonic)
    cut: bool = False

    @property
    def peer(self) -> Address:
        """Where it comes from."""
        return plain_address(self.address[0])

    def close(self) -> None:
        """End the connection under whoever reads from it."""
        self.cut = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Connection(AssociationSocket):
    """A socket that waits for the peer or for something to send, instead of asking a thousand times a second."""

    def __init__(self, assoc: AcceptedAssociation, client: socket.socket) -> None:
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        super().__init__(assoc, client_socket=client)

    def wake(self) -> None:
        """End a wait."""
        with suppress(OSError):  # it is awake: the buffer is full, or the connection has ended
            self._waker.send(b"w")

    @property
    def ready(self) -> bool:
        """Whether bytes have come, after a short wait for them."""
        client = self.socket
        if client is None or not self._is_connected:
            return False
        if isinstance(client, ssl.SSLSocket) and client.pending():
            return True
        poll = select.poll()  # not select(): that cannot hold descriptors beyond 1023
        try:
            poll.register(client, select.POLLIN)
            poll.register(self._woken, select.POLLIN)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False
        found = dict(poll.poll(_LOOK_SECONDS * 1000))
        if found.pop(self._woken.fileno(), 0):
            with suppress(OSError):
                self._woken.recv(4096)
        return bool(found)

    def dispose(self, client: socket.socket) -> None:
        """Close everything, however the association ended."""
        for one in (client, self._waker, self._woken):
            with suppress(OSError):
                one.close()


class _Checkpoint(threading.Event):
    """Where the association's own thread rests: until there is news, or for a look at its timers."""

    def __init__(self) -> None:
        super().__init__()
        self.news = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        while True:
            super().wait(timeout)
            self.news.wait(_LOOK_SECONDS)
            self.news.clear()
            if self.is_set():
                return True


class _Told(Queue[Any]):
    def __init__(self, news: threading.Event) -> None:
        super().__init__()
        self._news = news

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._news.set()


class _Messages(DIMSEServiceProvider):
    """Sends whole messages: pynetdicom lets two threads mix theirs."""

    def send_msg(self, primitive: Any, context_id: int) -> None:
        with self.dul.sending:  # type: ignore[attr-defined]
            super().send_msg(primitive, context_id)


class AcceptedAssociation(Association):
    """An association that a peer asked for, over our upper layer."""

    def __init__(self, server: Server, client: socket.socket, entrance: Entrance) -> None:
        super().__init__(server.ae, MODE_ACCEPTOR)
        self.daemon = True
        self._server = self._listening = server
        self.entrance, self._client = entrance, client
        self.admitted = False
        limits = server.limits
        self.dul = _Layer(self, limits, server.store, lambda: self.connection.wake())
        self.acse_timeout = self.dimse_timeout = self.connection_timeout = limits.network_seconds
        self.network_timeout = limits.idle_seconds
        checkpoint = _Checkpoint()
        checkpoint.set()
        self._reactor_checkpoint = checkpoint
        self._numbers = cycle(range(1, 1 << 16))
        self._confirmations: dict[int, threading.Event] = {}
        self.serving = threading.Lock()  # held until a request has been answered
        self.dimse = _Messages(self)
        self.dimse.msg_queue = _Told(checkpoint.news)
        self.dul.to_user_queue = _Told(checkpoint.news)
        self.connection = Connection(self, client)
        self.set_socket(self.connection)

    @property
    def peer(self) -> Address:
        """Where it comes from."""
        return self.entrance.peer

    def run_reactor(self) -> None:
        """The association's life."""
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001 whatever a hostile request does; its text may name somebody
            log.warning("an association is ended (%s)", type(error).__name__)
        finally:
            self.dul.kill_dul()
            self.connection.wake()

    def report(self, kind: int, result: Dataset, seconds: float) -> bool:
        """Tell the result of a storage commitment; True once the peer has confirmed it.

        Not pynetdicom's `send_n_event_report`: that takes the next request of a busy peer for the confirmation.
        """
        wanted = [c for c in self.accepted_contexts if c.abstract_syntax == StorageCommitmentPushModel]
        if not wanted or not self.is_established:
            return False
        syntax = wanted[0].transfer_syntax[0]
        request = N_EVENT_REPORT()
        request.MessageID = number = next(self._numbers)
        request.AffectedSOPClassUID = StorageCommitmentPushModel
        request.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
        request.EventTypeID = kind
        request.EventInformation = BytesIO(encode(result, syntax.is_implicit_VR, syntax.is_little_endian) or b"")
        confirmed = self._confirmations[number] = threading.Event()
        self.dimse.send_msg(request, wanted[0].context_id or 0)
        until = monotonic() + seconds
        while self.is_established and monotonic() < until and not confirmed.wait(_LOOK_SECONDS):
            pass
        del self._confirmations[number]
        return confirmed.is_set()

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if isinstance(msg, N_EVENT_REPORT) and msg.MessageIDBeingRespondedTo is not None:
            if confirmed := self._confirmations.get(msg.MessageIDBeingRespondedTo):
                confirmed.set()
            return
        with self.serving:
            super()._serve_request(msg, context_id)

    def cut(self) -> None:
        """Close the connection under the association."""
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def ended(self) -> None:
        """The upper layer's thread is over: nothing comes or goes any more."""
        self.connection.dispose(self._client)
        self._listening.forget(self)
        # Whoever waits for the request of a peer that has gone need not wait for the time-out.
        self.dul.to_user_queue.put(None)  # type: ignore[arg-type]

    def _bind_defaults(self) -> None:
        # Without pynetdicom's log of every message: it names identities, and it costs time.
        for event in evt._INTERVENTION_EVENTS:
            self.bind(event, evt.get_default_handler(event))


class _Layer(UpperLayer):
    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001 the state machine refuses what a peer does out of order
            log.info("an association ended out of order (%s)", type(error).__name__)
        finally:
            self.assoc.ended()  # type: ignore[attr-defined]


class _Handler(RequestHandler):
    """Makes our kind of association for a connection."""

    server: Server
    request: socket.socket

    def _create_association(self) -> Association:
        server, remote = self.server, AddressInformation.from_tuple(self.client_address)
        assoc = AcceptedAssociation(server, self.request, server.entrances[self.client_address])
        assoc.name = f"AcceptorThread@{remote.port}"
        assoc.acceptor.maximum_length = server.limits.max_pdu_bytes
        assoc.acceptor.ae_title = server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = server.ae.implementation_version_name
        assoc.acceptor.supported_contexts = server.contexts
        assoc.requestor.address_info = remote
        for event, (handler, arguments) in server.handlers.items():
            assoc.bind(event, handler, arguments)
        server.remember(assoc)
        return assoc


class Server(ThreadedAssociationServer):
    """Accepts connections, each served by threads of its own."""

    daemon_threads = True
    request_queue_size = 64
    ae: ApplicationEntity

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        contexts: list[PresentationContext],
        *,
        limits: Limits,
        gate: Gate,
        store: Store,
        allowed: Callable[[Address], bool],
        handlers: dict[Any, Callable[..., Any]],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.limits, self.gate, self.store = limits, gate, store
        self.handlers: dict[Any, tuple[Callable[..., Any], list[Any] | None]] = {
            event: (handler, None) for event, handler in handlers.items()
        }
        self.turned_away = 0
        self._allowed, self._tls = allowed, tls
        self._living: set[AcceptedAssociation] = set()
        self.entrances: dict[Any, Entrance] = {}  # by the peer's address and port, the oldest first
        self._lock = threading.Lock()
        # Without pynetdicom's TLS: it shakes hands in the thread that accepts.
        super().__init__(ae, address, ae.ae_title, contexts, request_handler=_Handler)
        ae._servers.append(self)  # whence shutdown() takes it

    @property
    def living(self) -> list[AcceptedAssociation]:
        """Connections that are open."""
        with self._lock:
            return list(self._living)

    def remember(self, assoc: AcceptedAssociation) -> None:
        """An association's thread will start."""
        with self._lock:
            self._living.add(assoc)

    def forget(self, assoc: AcceptedAssociation) -> None:
        """Its connection is closed."""
        with self._lock:
            self._living.discard(assoc)
            self._left(assoc.entrance, admitted=assoc.admitted)

    def admit(self, assoc: AcceptedAssociation) -> bool:
        """Count it as an association; False where there are too many or it has gone."""
        with self._lock:
            there = assoc in self._living and not assoc.entrance.cut
            assoc.admitted = there and self.gate.admit(assoc.peer)
            return assoc.admitted

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection may stay; nothing has been read from it."""
        peer = plain_address(client_address[0])
        if self._allowed(peer) and (self.gate.enter(peer) or (self._make_room(peer) and self.gate.enter(peer))):
            with self._lock:
                self.entrances[client_address] = Entrance(client_address, request)
            return True
        self.turned_away += 1
        return False

    def _make_room(self, peer: Address) -> bool:
        """Cut the oldest connection that has asked for nothing: whoever only connects must not keep others out.

        One of the same address, where that address has too many.
        """
        crowded, now = self.gate.crowded(peer), monotonic()
        with self._lock:
            asked = {assoc.entrance for assoc in self._living if assoc.admitted}
            for entrance in self.entrances.values():
                silent = entrance not in asked and not entrance.cut and now - entrance.since > SILENT_SECONDS
                if silent and (not crowded or entrance.peer == peer):
                    self.gate.leave(entrance.peer, admitted=False)
                    entrance.close()
                    return True
        return False

    def _left(self, entrance: Entrance, *, admitted: bool) -> None:
        """Count it out, once. The lock is held."""
        if self.entrances.get(entrance.address) is entrance:
            del self.entrances[entrance.address]
        if not entrance.cut:
            self.gate.leave(entrance.peer, admitted=admitted)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands, then hand the connection to an association."""
        entrance = self.entrances[client_address]
        try:
            self.finish_request(self._secured(entrance), client_address)
        except Exception as error:  # noqa: BLE001 one peer's connection must not end the listener
            log.info("a connection came to nothing (%s)", type(error).__name__)
            with self._lock:
                self._left(entrance, admitted=False)
            self.shutdown_request(entrance.socket)

    def service_actions(self) -> None:
        """pynetdicom collects garbage here; our associations leave none that could not wait."""

    def stop(self, seconds: float) -> None:
        """Accept nothing more, let each association finish the instance that it is at, and abort it."""
        super().shutdown()
        until = monotonic() + seconds
        ends = [threading.Thread(target=assoc.abort, daemon=True) for assoc in self.living if assoc.is_established]
        for end in ends:
            end.start()
        for end in ends:
            end.join(max(0.0, until - monotonic()))
        for assoc in self.living:
            assoc.cut()
            if assoc.dul.ident is not None:  # it has been started
                assoc.dul.join(1.0)

    def _secured(self, entrance: Entrance) -> socket.socket:
        seconds, request = self.limits.network_seconds, entrance.socket
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._tls:
            request.settimeout(seconds)
            entrance.socket = wrapped = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            wrapped.do_handshake()
            return wrapped
        # The system's own time-outs: Python's ask with poll() before every call, and let go of the interpreter twice.
        wait = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        request.settimeout(None)
        return request

    def _bind_defaults(self) -> None:
        """Our associations bind their own."""
