"""Whatever a peer sends to the listener's port, byte by byte, in the threads' order but without the threads."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, Final

from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ABORT,
    A_ASSOCIATE,
    A_P_ABORT,
    A_RELEASE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    UserIdentityNegotiation,
)
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AddressInformation

from models.errors import BadInputError
from tasks.receive.listener import supported_contexts
from tasks.receive.transport import AcceptedAssociation, Entrance
from tasks.receive.upper_layer import Incoming, Limits, StoreRequest
from tasks.stores.peek import Peeker
from tests.fuzz.dicom import encode
from tests.fuzz.headers import image

_LIMITS: Final = Limits(max_pdu_bytes=4096, max_instance_bytes=20_000, network_seconds=5, idle_seconds=5)
_MOST, _ROUNDS = 48 << 10, 3000
_ECHO, _STORE, _CANCEL, _ACTION, _FIND = 0x0030, 0x0001, 0x0FFF, 0x0130, 0x0020


def target(data: bytes) -> None:
    """One connection, from its first byte to its end. Nothing may be raised, and it ends."""
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _MOST)
        peer.sendall(data[:_MOST])
        peer.shutdown(socket.SHUT_WR)
        _Driven(ours).drive()


@contextmanager
def driven() -> Iterator[AcceptedAssociation]:
    """An association that nobody has asked for anything yet."""
    ours, peer = socket.socketpair()
    with ours, peer:
        association = _Driven(ours)
        try:
            yield association
        finally:
            association.connection.dispose(ours)


class _Driven(AcceptedAssociation):
    """An association whose two threads take turns in one."""

    def __init__(self, client: socket.socket) -> None:
        entrance = Entrance(("127.0.0.1", 1), client)
        super().__init__(_server(), client, entrance)  # type: ignore[arg-type]
        self.acceptor.maximum_length = _LIMITS.max_pdu_bytes
        self.acceptor.ae_title = "NOCTURNE"
        self.acceptor.supported_contexts = supported_contexts()
        self.over = False

    def kill(self) -> None:
        """Without waiting for a thread that there is not."""
        self.over = True

    def abort(self) -> None:
        self.over = True

    def drive(self) -> None:
        """Until the connection has ended."""
        try:
            for _ in range(_ROUNDS):
                if not self.dul._process_recv_primitive():
                    self.dul._is_transport_event()
                if not self.dul.event_queue.empty() and not self._moved(self.dul.event_queue.get(block=False)):
                    return
                if self.over or self.dul.state_machine.current_state == "Sta1":
                    return
                try:
                    self._attend()
                except Exception:  # noqa: BLE001 `run_reactor` ends the association: see tests/fuzz/test_cases.py
                    return
            raise AssertionError("the connection does not end")
        finally:
            self.connection.dispose(self._client)

    def _moved(self, event: str) -> bool:
        try:
            self.dul.state_machine.do_action(event)
        except Exception:  # noqa: BLE001 `_Layer` ends the association: the peer did something out of order
            return False
        return True

    def _attend(self) -> None:
        """What the association's own thread does."""
        primitive = self.dul.receive_pdu(wait=False)
        if isinstance(primitive, A_ASSOCIATE):
            self.requestor.primitive = primitive
            str(primitive.calling_ae_title or "").strip()
            self.acse.negotiate_association()
        elif isinstance(primitive, A_RELEASE):
            self.acse.send_release(is_response=True)
        elif isinstance(primitive, A_ABORT | A_P_ABORT):
            self.over = True
        context, message = self.dimse.get_msg(block=False)
        if message:
            self._serve_request(message, context)


@cache
def _server() -> Any:
    ae = AE(ae_title="NOCTURNE")
    ae.maximum_associations = 1 << 30
    nothing = lambda *_: None  # noqa: E731
    return SimpleNamespace(ae=ae, limits=_LIMITS, store=_store, forget=nothing, shutdown_request=nothing)


def _store(request: StoreRequest, parts: Incoming) -> tuple[int, str]:
    """As the listener answers, without keeping anything."""
    peeker = Peeker(request.transfer_syntax)
    try:
        for part in parts:
            peeker.feed(part)
        peeker.end()
    except BadInputError as error:
        return 0xC000, error.what
    return 0, ""


# -- what a peer can say -----------------------------------------------------------------------------------------


def request(*more: Any, syntaxes: Sequence[str] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)) -> bytes:
    """An A-ASSOCIATE-RQ for C-ECHO (context 1) and CT images (context 3)."""
    wanted = A_ASSOCIATE()
    wanted.application_context_name = "1.2.840.10008.3.1.1.1"
    wanted.calling_ae_title, wanted.called_ae_title = "SCANNER", "NOCTURNE"
    wanted.calling_presentation_address = wanted.called_presentation_address = AddressInformation("127.0.0.1", 104)
    contexts = [build_context(Verification), build_context(CTImageStorage, list(syntaxes))]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    wanted.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16382, "1.2.3"
    wanted.user_information = [length, implementation, *more]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(wanted)
    return bytes(pdu.encode())


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A PDU, of a length that it claims."""
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def fragment(context: int, control: int, data: bytes, length: int | None = None) -> bytes:
    """A presentation data value."""
    return struct.pack(">LBB", len(data) + 2 if length is None else length, context, control) + data


def command(kind: int, *, data_set: bool, **more: bytes) -> bytes:
    """A command set; `more`: further elements by their number, such as e0000=b"…", and others than the usual."""
    elements = {
        0x0002: b"1.2.840.10008.1.1\0"
        if kind != _STORE
        else CTImageStorage.encode() + b"\0" * (len(CTImageStorage) % 2),
        0x0100: struct.pack("<H", kind),
        0x0110: struct.pack("<H", 7),
        0x0700: struct.pack("<H", 0),
        0x0800: struct.pack("<H", 1 if data_set else 0x0101),
        0x1000: b"1.2.3.4\0",
    }
    elements |= {int(name[1:], 16): value for name, value in more.items()}
    body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in sorted(elements.items()))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def echo(context: int = 1) -> bytes:
    """C-ECHO, whole in one PDU."""
    return pdu(4, fragment(context, 3, command(_ECHO, data_set=False)))


def store(context: int = 3, *, step: int = 500) -> bytes:
    """C-STORE of a small image, in several PDUs."""
    data = encode(image()[2:], explicit=True)
    parts = [data[n : n + step] for n in range(0, len(data), step)]
    sent = pdu(4, fragment(context, 3, command(_STORE, data_set=True)))
    return sent + b"".join(pdu(4, fragment(context, 2 * (n == len(parts) - 1), p)) for n, p in enumerate(parts))


RELEASE: Final = pdu(5, bytes(4))
ABORT: Final = pdu(7, bytes(4))


def seeds() -> list[bytes]:
    """Conversations that are right."""
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field = 2, b"user"
    identity.secondary_field, identity.positive_response_requested = b"word", True
    return [
        request() + echo() + RELEASE,
        request() + store() + echo() + store(step=4000) + RELEASE,
        request(identity) + echo() + ABORT,
        request() + pdu(4, fragment(1, 1, command(_ECHO, data_set=False)[:20]) * 2) + RELEASE,
    ]


_BODY = st.binary(max_size=30)
_ELEMENTS = st.dictionaries(
    st.sampled_from(
        ("e0000", "e0002", "e0003", "e0100", "e0110", "e0120", "e0600", "e0800", "e1000", "e1001", "e1008")
    ),
    st.sampled_from((b"", b"\0", b"\1\0", b"\xff\xff", b"1.2\\1.3\0", b"\xff" * 70, b"1.2.840.10008.1.20.1")) | _BODY,
    max_size=3,
)
_COMMANDS = st.builds(
    lambda kind, data_set, more: command(kind, data_set=data_set, **more),
    st.sampled_from((_ECHO, _STORE, _CANCEL, _ACTION, _FIND, 0x8030, 0x8001, 0x0100, 0x0150)) | st.integers(0, 0xFFFF),
    st.booleans(),
    _ELEMENTS,
)
_LENGTHS = st.none() | st.none() | st.none() | st.sampled_from((0, 1, 2, 5, 4102, 4103, 0x7FFFFFFF, 0xFFFFFFFF))
_FRAGMENTS = st.builds(
    fragment,
    st.sampled_from((1, 3, 3, 0, 5, 255)),
    st.sampled_from((0, 1, 2, 3, 3, 3, 0xFF)),
    _COMMANDS | _BODY,
    _LENGTHS,
)
_PDUS = st.one_of(
    st.builds(pdu, st.just(4), st.lists(_FRAGMENTS, max_size=3).map(b"".join), _LENGTHS),
    st.builds(pdu, st.integers(0, 9), _BODY, _LENGTHS),
    st.sampled_from((echo(), store(), store(1), echo(3), RELEASE, ABORT, request(), b"GET / HTTP/1.0\r\n\r\n")),
)


def _damage(whole: bytes, changes: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(whole)
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    return bytes(damaged)


_REQUESTS = st.just(request()) | st.builds(
    _damage, st.just(seeds()[2]), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=5)
)
shaped = st.builds(
    lambda first, then, last: first + b"".join(then) + last, _REQUESTS, st.lists(_PDUS, max_size=6), _BODY
)
"""An association that is asked for, and then what no peer should say."""
