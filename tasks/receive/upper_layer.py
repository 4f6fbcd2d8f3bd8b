"""The DICOM upper layer of one association (PS3.8): bounded reading, and C-STORE straight from the socket to the spool.

pynetdicom's state machine stays in charge of negotiation, release and abort, and its DIMSE provider of everything but
C-STORE. A stored data set never passes through its queues: the fragments are handed on as they arrive, from one buffer
that is used again and again, and the answer is written by the same thread.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ssl import SSLSocket
from time import monotonic
from typing import TYPE_CHECKING, Final

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from models.errors import BadInputError

if TYPE_CHECKING:
    from pynetdicom.association import Association

SLOWEST: Final = 4096
"""Bytes a second: a peer that is slower while it sends one PDU is cut off."""
PDU_TOLERANCE: Final = 6  # some senders count the header of a PDU in, some do not
_REQUEST_BYTES, _CONTROL_BYTES, _COMMAND_BYTES, _MESSAGE_BYTES = 1 << 20, 64, 64 << 10, 16 << 20
_BACKLOG = 32  # requests of a peer that does not wait for answers
_HEADER, _ITEM = struct.Struct(">BBL"), struct.Struct(">LBB")
_P_DATA, _ASSOCIATE = 4, (1, 2)
_C_STORE, _C_STORE_ANSWER, _NO_DATA_SET = 0x0001, 0x8001, 0x0101
_PROCESSING_FAILURE = 0x0110

log = logging.getLogger(__name__)

Fragment = tuple[int, int, memoryview]  # presentation context, control header, bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What one association may claim."""

    max_pdu_bytes: int
    max_instance_bytes: int
    network_seconds: float
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE request; its UIDs are the sender's own."""

    context_id: int
    message_id: int
    sop_class: str
    sop_instance: str
    abstract_syntax: str
    transfer_syntax: str
    wanted: bool  # the context was accepted, and with us as the SCP


Store = Callable[[StoreRequest, "Incoming"], tuple[int, str]]
"""Keeps what comes in; answers the status and, where something is wrong, a comment that names no identity."""


class Malformed(Exception):
    """The peer breaks the protocol: the association is aborted."""


class _Interrupted(Exception):
    def __init__(self, kind: int, body: bytes) -> None:
        self.kind, self.body = kind, body
        super().__init__()


class Incoming:
    """The fragments of one data set as they arrive. Each is valid until the next one is asked for."""

    def __init__(self, layer: UpperLayer, context_id: int, limit: int) -> None:
        self._layer, self._context, self._limit = layer, context_id, limit
        self._size = 0
        self._done = False

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        if self._done:
            raise StopIteration
        data = self._fragment()
        if self._size > self._limit:
            raise BadInputError(f"an instance of over {self._limit} bytes", reason="too-large")
        return data

    def drain(self) -> None:
        """Let the rest of the message pass, so that the association can go on."""
        while not self._done:
            self._fragment()
            if self._size > 2 * self._limit:
                raise Malformed("an instance without end")

    def _fragment(self) -> memoryview:
        context, control, data = self._layer.next_fragment()
        if control & 1 or context != self._context:
            raise Malformed("another message within a data set")
        self._done = bool(control & 2)
        self._size += len(data)
        return data


class UpperLayer(DULServiceProvider):
    """pynetdicom's provider with a reading side of our own."""

    def __init__(self, assoc: Association, limits: Limits, store: Store, wake: Callable[[], None]) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._limits, self._store, self._wake = limits, store, wake
        self.sending = threading.Lock()  # held while the fragments of one message are queued: none may come between
        self._run_loop_delay = 0  # `ready` of our socket waits instead
        self._buffer = bytearray(_CONTROL_BYTES)
        self._fragments: deque[Fragment] = deque()
        self._command = bytearray()
        self._expected = 0  # bytes that a message of another kind may still have; 0: none is open
        self._storing = self._given_up = False

    # -- what pynetdicom calls ----------------------------------------------------------------------------------

    def idle_timer_expired(self) -> bool:
        """Whether the peer has been silent for too long; what we are busy with is not its silence."""
        return not self._storing and super().idle_timer_expired()

    def send_pdu(self, primitive: object) -> None:
        """Queue a primitive, and wake the thread that sends it."""
        super().send_pdu(primitive)  # type: ignore[arg-type]
        self._wake()

    def stop_dul(self) -> bool:
        """End the thread if nothing is going on."""
        if self.state_machine.current_state != "Sta1":
            return False
        self._kill_thread = True
        self._wake()
        self.join()
        return True

    def _read_pdu_data(self) -> None:
        self._read_one()
        # pynetdicom sleeps after every round in which the state machine had nothing to do, as with C-STORE.
        while self._undisturbed() and self.socket and self.socket.ready:
            self._idle_timer.restart()
            self._read_one()

    def _undisturbed(self) -> bool:
        waiting = self.event_queue.qsize() or self.to_provider_queue.qsize() or self._kill_thread
        return not waiting and self.state_machine.current_state == "Sta6"

    def _read_one(self) -> None:
        try:
            if self._given_up:
                self._discard()
                return
            kind, body = self._next_pdu()
            if kind == _P_DATA and self.state_machine.current_state == "Sta6":
                self._fragments = _split(body)
                while self._fragments:
                    self._take(*self._fragments.popleft())
            else:
                self._pass_on(kind, bytes(body))
        except _Interrupted as found:
            self._pass_on(found.kind, found.body)
        except Malformed as error:
            self._give_up(str(error))
        except OSError:
            self.event_queue.put("Evt17")

    # -- reading ------------------------------------------------------------------------------------------------

    def next_fragment(self) -> Fragment:
        """The next fragment of the message that is being read."""
        while not self._fragments:
            kind, body = self._next_pdu()
            if kind != _P_DATA:
                raise _Interrupted(kind, bytes(body))
            self._fragments = _split(body)
            self._idle_timer.restart()
        return self._fragments.popleft()

    def _next_pdu(self) -> tuple[int, memoryview]:
        kind, _, length = _HEADER.unpack(self._read(_HEADER.size))
        if not 1 <= kind <= 7:
            raise Malformed("a PDU of an unknown kind")
        most = _REQUEST_BYTES if kind in _ASSOCIATE else _CONTROL_BYTES
        if kind == _P_DATA:
            most = self._limits.max_pdu_bytes + PDU_TOLERANCE
        if length > most:
            raise Malformed(f"a PDU of {length} bytes")
        return kind, self._read(length)

    def _read(self, count: int) -> memoryview:
        """So many bytes. The socket's own time-out bounds the wait for each part of them."""
        connection = self.socket.socket if self.socket else None
        if connection is None:
            raise ConnectionAbortedError
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        view = memoryview(self._buffer)[:count]
        flags = 0 if isinstance(connection, SSLSocket) else socket.MSG_WAITALL
        until = monotonic() + self._limits.network_seconds + count / SLOWEST
        have = connection.recv_into(view, count, flags)
        while have < count:
            if monotonic() > until or not (more := connection.recv_into(view[have:], count - have, flags)):
                raise ConnectionAbortedError
            have += more
        return view

    def _pass_on(self, kind: int, body: bytes) -> None:
        """Give a whole PDU to the state machine."""
        try:
            pdu, event = self._decode_pdu(bytearray(_HEADER.pack(kind, 0, len(body)) + body))
        except Exception:  # noqa: BLE001 whatever a hostile PDU does to the decoder
            self._give_up("a PDU that cannot be decoded")
            return
        self.event_queue.put(event)
        self._recv_pdu.put(pdu)

    def _give_up(self, why: str) -> None:
        """Abort. What still comes from this peer means nothing."""
        log.warning("an association is aborted: %s", why)
        self._given_up = True
        self._fragments.clear()
        self.event_queue.put("Evt19")

    def _discard(self) -> None:
        connection = self.socket.socket if self.socket else None
        if connection is None or not connection.recv(_COMMAND_BYTES):
            raise ConnectionAbortedError

    # -- messages -----------------------------------------------------------------------------------------------

    def _take(self, context: int, control: int, data: memoryview) -> None:
        if not control & 1:
            self._continue(context, control, data)
            return
        self._command += data
        if len(self._command) > _COMMAND_BYTES or self._expected:
            raise Malformed("a command that is too long or within another message")
        if not control & 2:
            return
        raw, self._command = bytes(self._command), bytearray()
        command = _parse(raw)
        has_data = _number(command, 0x0800) != _NO_DATA_SET
        if _number(command, 0x0100) == _C_STORE and has_data:
            self._receive(self._request(context, command))
            return
        if self.assoc.dimse.msg_queue.qsize() > _BACKLOG:
            raise Malformed("requests without waiting for answers")
        self._expected = _MESSAGE_BYTES if has_data else 0
        self._hand_over(context, control, raw)

    def _continue(self, context: int, control: int, data: memoryview) -> None:
        if len(data) >= self._expected:
            raise Malformed("a data set that is too long or belongs to no command")
        self._expected = 0 if control & 2 else self._expected - len(data)
        self._hand_over(context, control, data)

    def _hand_over(self, context: int, control: int, data: bytes | memoryview) -> None:
        try:
            self.assoc.dimse.receive_primitive(_primitive(context, control & 3, data))
        except Exception:  # noqa: BLE001 whatever a hostile message does to the decoder
            raise Malformed("a message that cannot be decoded") from None

    def _request(self, context_id: int, command: dict[int, bytes]) -> StoreRequest:
        context = self.assoc._accepted_cx.get(context_id)
        return StoreRequest(
            context_id=context_id,
            message_id=_number(command, 0x0110),
            sop_class=_text(command, 0x0002),
            sop_instance=_text(command, 0x1000),
            abstract_syntax=str(context.abstract_syntax) if context else "",
            transfer_syntax=str(context.transfer_syntax[0]) if context else "",
            wanted=bool(context and context.as_scp),
        )

    def _receive(self, request: StoreRequest) -> None:
        if not request.wanted:
            raise Malformed("an instance in a presentation context that was not accepted")
        incoming = Incoming(self, request.context_id, self._limits.max_instance_bytes)
        self._storing = True
        try:
            status, comment = self._kept(request, incoming)
            incoming.drain()
        finally:
            self._idle_timer.restart()
            self._storing = False
        self._answer(request, status, comment)

    def _kept(self, request: StoreRequest, incoming: Incoming) -> tuple[int, str]:
        try:
            return self._store(request, incoming)
        except (OSError, Malformed, _Interrupted):
            raise
        except Exception as error:  # noqa: BLE001 the sender must have an answer, and the others their listener
            log.error("an instance could not be kept (%s)", type(error).__name__)
            return _PROCESSING_FAILURE, "internal error"

    def _answer(self, request: StoreRequest, status: int, comment: str) -> None:
        message = _answer(request, status, comment)
        limit = self.assoc.requestor.maximum_length or len(message) + _ITEM.size
        step = max(limit - _ITEM.size, 1)
        with self.sending:
            queued = self.to_provider_queue.qsize() > 0  # another message goes first, and goes whole
            for start in range(0, len(message), step):
                part = message[start : start + step]
                control = 3 if start + step >= len(message) else 1
                if queued:
                    self.to_provider_queue.put(_primitive(request.context_id, control, part))
                elif self.socket:
                    item = _ITEM.pack(len(part) + 2, request.context_id, control) + part
                    self.socket.send(_HEADER.pack(_P_DATA, 0, len(item)) + item)


def _primitive(context: int, control: int, data: bytes | memoryview) -> P_DATA:
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[context, bytes([control]) + data]]  # type: ignore[list-item]
    return primitive


def _split(body: memoryview) -> deque[Fragment]:
    """The presentation data values of a P-DATA-TF (PS3.8 9.3.5)."""
    found: deque[Fragment] = deque()
    at = 0
    while at < len(body):
        if len(body) - at < _ITEM.size:
            raise Malformed("a fragment that is cut off")
        length, context, control = _ITEM.unpack_from(body, at)
        end = at + 4 + length
        if length < 2 or end > len(body):
            raise Malformed("a fragment that is longer than its PDU")
        found.append((context, control, body[at + _ITEM.size : end]))
        at = end
    return found


def _parse(command: bytes) -> dict[int, bytes]:
    """The elements of a command set (PS3.7 6.3): group 0000 in implicit VR little endian."""
    found, at = {}, 0
    while at + 8 <= len(command):
        group, element, length = struct.unpack_from("<HHL", command, at)
        at += 8
        if group or at + length > len(command):
            raise Malformed("a command set that is none")
        found[element] = command[at : at + length]
        at += length
    return found


def _number(command: dict[int, bytes], element: int) -> int:
    value = command.get(element, b"")
    if len(value) < 2:
        raise Malformed("a command without its parts")
    return int.from_bytes(value[:2], "little")


def _text(command: dict[int, bytes], element: int) -> str:
    return command.get(element, b"")[:128].decode("ascii", "replace").strip(" \0")


def _answer(request: StoreRequest, status: int, comment: str) -> bytes:
    elements = [
        (0x0002, _padded(request.sop_class, b"\0")),
        (0x0100, struct.pack("<H", _C_STORE_ANSWER)),
        (0x0120, struct.pack("<H", request.message_id)),
        (0x0800, struct.pack("<H", _NO_DATA_SET)),
        (0x0900, struct.pack("<H", status)),
        *([(0x0902, _padded(comment[:64], b" "))] if comment else []),
        (0x1000, _padded(request.sop_instance, b"\0")),
    ]
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _padded(text: str, pad: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + pad * (len(value) % 2)
