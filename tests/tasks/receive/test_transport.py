"""Hostile and broken peers: each is cut off in bounded time and memory, and nobody else notices."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from models.errors import SettingsError
from models.hospital import Tls
from tasks.receive import transport
from tasks.receive.listener import Listener
from tasks.receive.transport import SPARE_CONNECTIONS, Gate, plain_address, tls_context
from tasks.receive.upper_layer import PDU_TOLERANCE
from tasks.stores import spool as spool_module
from tasks.stores.spool import Spool
from tests.components import until
from tests.tasks.receive.certificates import Authority, client
from tests.tasks.receive.peer import PATIENCE, associate, sender
from tests.tasks.receive.samples import encoded, instance
from tests.tasks.receive.test_listener import Listen, associated, status
from tests.tasks.receive.test_listener import listen as listen


def connect(port: int, *, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(source, 0))


def ended(peer: socket.socket) -> bytes:
    """What the listener still said before it closed the connection."""
    told = b""
    try:
        while part := peer.recv(4096):
            told += part
    except ConnectionResetError:
        pass
    return told


def echoes(port: int, tls: tuple[object, str] | None = None) -> bool:
    ae = sender()
    ae.add_requested_context(Verification)
    assoc = associate(ae, port, tls_args=tls)
    if not assoc.is_established:
        return False
    answered = assoc.send_c_echo()
    assoc.release()
    return bool(answered.Status == 0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.new(tmp_path / "certificates")


# -- the five faults of pynetdicom 3.0.4 --------------------------------------------------------------------------


@pytest.mark.fault("receive/handshake")
def test_a_silent_peer_on_the_tls_port_blocks_nobody(listen: Listen, authority: Authority) -> None:
    port = listen(tls=authority.issue("listener"), network_seconds=PATIENCE).port
    with connect(port), connect(port):
        assert echoes(port, (client(authority.issue("sender")), "127.0.0.1"))


@pytest.mark.fault("receive/handshake")
def test_a_silent_peer_on_the_tls_port_is_cut_off(listen: Listen, authority: Authority) -> None:
    port = listen(tls=authority.issue("listener"), network_seconds=0.5).port
    with connect(port) as silent:
        assert ended(silent) == b""


@pytest.mark.fault("receive/huge-pdu")
@pytest.mark.parametrize("kind", [1, 4, 5, 7])
def test_a_pdu_that_claims_four_gigabytes_is_refused_by_its_header(listen: Listen, kind: int) -> None:
    listener = listen()
    with connect(listener.port) as peer:
        peer.sendall(struct.pack(">BBL", kind, 0, 0xFFFFFFF0) + bytes(1000))
        assert ended(peer)[:1] in (b"\7", b"")  # A-ABORT, unless the reset overtakes it
    assert echoes(listener.port)


@pytest.mark.fault("receive/huge-pdu")
def test_within_an_association_a_pdu_is_bounded_by_what_was_announced(listen: Listen) -> None:
    listener = listen(max_pdu_bytes=4096)
    with associated(listener) as assoc:
        assert assoc.acceptor.maximum_length == 4096
        assert status(assoc, instance(side=100)) == 0
        raw(assoc).sendall(struct.pack(">BBL", 4, 0, 4096 + PDU_TOLERANCE + 1))
        until(lambda: assoc.is_aborted, "the association to be aborted")


@pytest.mark.fault("receive/partial-pdu")
@pytest.mark.parametrize("begun", [b"", b"\1", b"\1\0\0\0", struct.pack(">BBL", 1, 0, 200) + b"abc"])
def test_what_has_begun_and_does_not_go_on_is_closed(listen: Listen, begun: bytes) -> None:
    listener = listen(network_seconds=1)
    with connect(listener.port) as peer:
        peer.sendall(begun)
        ended(peer)
    until(lambda: listener.figures()["connections"] == 0, "the connection to be counted out")


@pytest.mark.fault("receive/slow")
def test_a_peer_that_drips_bytes_is_closed_too(listen: Listen) -> None:
    listener = listen(network_seconds=1)
    with connect(listener.port) as peer:
        peer.sendall(struct.pack(">BBL", 1, 0, 1000))
        until(lambda: dripped(peer), "the listener to lose patience")


def dripped(peer: socket.socket) -> bool:
    try:
        peer.send(b"x")
    except OSError:
        return True
    return False


def test_connections_of_one_address_leave_room_for_others(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "SILENT_SECONDS", 2 * PATIENCE)
    listener = listen(associations=8, associations_per_peer=2, network_seconds=2 * PATIENCE)
    with ExitStack() as held:
        for _ in range(2 + SPARE_CONNECTIONS):
            held.enter_context(connect(listener.port))
        until(lambda: listener.figures()["connections"] == 2 + SPARE_CONNECTIONS, "the connections to be counted")
        with connect(listener.port) as one_more:
            assert ended(one_more) == b""
        assert listener.figures()["turned_away"] == 1
        with connect(listener.port, source="127.0.0.2") as other:
            until(lambda: listener.figures()["connections"] == 3 + SPARE_CONNECTIONS, "another address to get in")
            other.shutdown(socket.SHUT_WR)
            ended(other)
    until(lambda: listener.figures()["connections"] == 0, "connections that were closed to be counted out")
    assert echoes(listener.port)


@pytest.mark.fault("receive/idle")
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "TLS"])
def test_whoever_only_connects_makes_room_for_whoever_asks(
    listen: Listen, authority: Authority, monkeypatch: pytest.MonkeyPatch, secured: bool
) -> None:
    monkeypatch.setattr(transport, "SILENT_SECONDS", 0.0)
    tls = authority.issue("listener") if secured else None
    listener = listen(associations=4, associations_per_peer=4, network_seconds=2 * PATIENCE, tls=tls)
    with ExitStack() as held:
        for n in range(4 + 2 * SPARE_CONNECTIONS):
            held.enter_context(connect(listener.port, source=f"127.0.0.{1 + n % 4}"))
        until(lambda: listener.figures()["connections"] == 4 + 2 * SPARE_CONNECTIONS, "the connections to be counted")
        assert echoes(listener.port, (client(authority.issue("sender")), "127.0.0.1") if secured else None)
        with associated(listener) if not secured else ExitStack() as asked:
            for _ in range(8):
                held.enter_context(connect(listener.port))
            assert secured or status(asked, instance()) == 0  # who has asked stays
    until(lambda: listener.figures()["connections"] == 0, "connections that were closed to be counted out")
    assert listener.figures()["associations"] == 0


# -- TLS ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("receive/certificate")
def test_only_a_certificate_of_our_authority_gets_in(listen: Listen, authority: Authority, tmp_path: Path) -> None:
    port = listen(tls=authority.issue("listener")).port
    mine = authority.issue("sender")
    foreign = Authority.new(tmp_path / "foreign", "other").issue("sender")
    trusting = Tls(certificate=foreign.certificate, key=foreign.key, authority=mine.authority)
    assert not echoes(port, (client(mine, certificate=False), "127.0.0.1"))
    assert not echoes(port, (client(trusting), "127.0.0.1"))
    assert not echoes(port)
    assert echoes(port, (client(mine), "127.0.0.1"))


def test_instances_come_over_tls_whole(listen: Listen, authority: Authority, spool: Spool) -> None:
    port = listen(tls=authority.issue("listener")).port
    ae = sender()
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = associate(ae, port, tls_args=(client(authority.issue("sender")), "127.0.0.1"))
    for seed in range(5):
        assert status(assoc, instance(side=512, seed=seed)) == 0
    assoc.release()
    kept = list(spool.root.rglob("*.dcm"))
    assert len(kept) == 5
    for path in kept:
        spool.verify(path)


def test_certificates_that_cannot_be_read_are_a_setting_that_is_wrong(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(SettingsError, match="certificates"):
        tls_context(Tls(certificate=missing, key=missing, authority=missing))


# -- within an association ----------------------------------------------------------------------------------------


def raw(assoc: Association) -> socket.socket:
    """The socket under a sender's association, for bytes that no sender should send."""
    assert assoc.dul.socket
    assert assoc.dul.socket.socket
    return assoc.dul.socket.socket


def context_of(assoc: Association) -> int:
    (found,) = [c.context_id for c in assoc.accepted_contexts if c.abstract_syntax == CTImageStorage]
    assert found
    return found


def pdv(context: int, control: int, data: bytes) -> bytes:
    return struct.pack(">LBB", len(data) + 2, context, control) + data


def pdu(*items: bytes, kind: int = 4) -> bytes:
    body = b"".join(items)
    return struct.pack(">BBL", kind, 0, len(body)) + body


def command(sop_instance: str = "1.2.3", sop_class: str = CTImageStorage, *, field: int = 1, data: int = 0) -> bytes:
    uids = [text.encode() + b"\0" * (len(text) % 2) for text in (sop_class, sop_instance)]
    numbers = [struct.pack("<H", number) for number in (field, 7, 2, data)]
    parts = zip((2, 0x100, 0x110, 0x700, 0x800, 0x1000), (uids[0], *numbers, uids[1]), strict=True)
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in parts)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


BROKEN = {
    "an unknown kind": lambda c: pdu(b"x", kind=9),
    "a fragment longer than its PDU": lambda c: pdu(struct.pack(">LBB", 500, c, 3) + b"abc"),
    "a fragment without a head": lambda c: pdu(b"\0\0"),
    "a fragment of nothing": lambda c: pdu(struct.pack(">LBB", 0, c, 3)),
    "a command of noise": lambda c: pdu(pdv(c, 3, b"\x01" * 99)),
    "an empty command": lambda c: pdu(pdv(c, 3, b"")),
    "a command without end": lambda c: b"".join(pdu(pdv(c, 1, bytes(60_000))) for _ in range(3)),
    "a command of no known kind": lambda c: pdu(pdv(c, 3, command(field=0x7777, data=0x0101))),
    "a context that was not accepted": lambda c: pdu(pdv(c + 100, 3, command())) + pdu(pdv(c + 100, 2, b"x")),
    "a data set without a command": lambda c: pdu(pdv(c, 2, b"x")),
    "a command within a data set": lambda c: pdu(pdv(c, 3, command()), pdv(c, 0, b"x"), pdv(c, 3, command())),
    "a context that changes": lambda c: pdu(pdv(c, 3, command()), pdv(c + 2, 0, b"x")),
    "a message without end": lambda c: (
        pdu(pdv(c, 3, command(field=0x0130))) + b"".join(pdu(pdv(c, 0, bytes(100_000))) for _ in range(200))
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_whoever_breaks_the_protocol_is_aborted(listen: Listen, spool: Spool, name: str) -> None:
    listener = listen()
    with associated(listener) as assoc:
        with suppress(OSError):  # cut off while it is still sending
            raw(assoc).sendall(BROKEN[name](context_of(assoc)))
        until(lambda: not assoc.is_established, "the association to end")
    until(lambda: listener.figures()["connections"] == 0, "the connection to end")
    assert echoes(listener.port)
    assert not list(spool.root.rglob("*.part"))


def begins(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the first bytes of an instance are on the disk: the file itself may be gone before anybody looks."""
    begun, real = threading.Event(), spool_module._write

    def write(descriptor: int, *buffers: bytes | memoryview) -> None:
        real(descriptor, *buffers)
        begun.set()

    monkeypatch.setattr(spool_module, "_write", write)
    return begun


@contextmanager
def begun_on(listener: Listener, begun: threading.Event) -> Iterator[Association]:
    """An association on which an instance has begun; another one where the listener lost its patience before."""
    ds, end = instance(side=300), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with associated(listener) as assoc:
            if assoc.is_established:
                context = context_of(assoc)
                part = pdv(context, 0, encoded(ds)[:90_000])
                with suppress(OSError, AssertionError):  # cut off already
                    raw(assoc).sendall(pdu(pdv(context, 3, command(ds.SOPInstanceUID)), part))
                until(lambda a=assoc: begun.is_set() or not a.is_established, "the instance to begin")  # type: ignore[misc]
            if begun.is_set():
                yield assoc
                return
    pytest.fail("no instance has begun")


@pytest.mark.fault("receive/sender-killed")
@pytest.mark.parametrize("ending", ["close", "abort", "silence"])
def test_an_instance_that_breaks_off_leaves_nothing(
    listen: Listen, spool: Spool, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listen(network_seconds=1 if ending == "silence" else 2 * PATIENCE)
    begun = begins(monkeypatch)
    with begun_on(listener, begun) as assoc:
        if ending == "close":
            raw(assoc).shutdown(socket.SHUT_RDWR)
        elif ending == "abort":
            assoc.abort()
        until(lambda: not assoc.is_established, "the association to end")
    until(lambda: listener.figures()["connections"] == 0, "the connection to end")
    assert not list(spool.root.rglob("*.part"))
    assert not list(spool.root.rglob("*.dcm"))


def test_an_association_that_is_silent_for_too_long_is_ended(listen: Listen) -> None:
    listener = listen(idle_seconds=1)
    with associated(listener) as assoc:
        until(lambda: not assoc.is_established, "the association to end")
    until(lambda: listener.figures()["connections"] == 0, "the connection to end")


def test_fragments_of_any_size_make_the_same_instance(listen: Listen, spool: Spool) -> None:
    ds = instance(side=64)
    data, said = encoded(ds), command(ds.SOPInstanceUID)
    rng = random.Random(3)
    with associated(listen()) as assoc:
        context = context_of(assoc)
        for turn in range(6):
            pieces = [pdv(context, 1, said[:40]), pdv(context, 3, said[40:])]
            at = 0
            while at < len(data):
                step = rng.randint(1, 3000)
                pieces.append(pdv(context, 2 if at + step >= len(data) else 0, data[at : at + step]))
                at += step
            groups = [pieces] if turn == 0 else [pieces[n : n + turn] for n in range(0, len(pieces), turn)]
            assoc._reactor_checkpoint.clear()
            until(lambda: assoc._is_paused, "the reactor to pause")
            raw(assoc).sendall(b"".join(pdu(*group) for group in groups))
            _, answer = assoc.dimse.get_msg(block=True)
            assoc._reactor_checkpoint.set()
            assert answer
            assert answer.Status == 0
    (path,) = spool.root.rglob("*.dcm")
    spool.verify(path)


@pytest.mark.fault("receive/plain-on-tls")
def test_noise_of_every_kind_does_not_harm_the_listener(listen: Listen) -> None:
    listener = listen(associations=200, associations_per_peer=100, network_seconds=PATIENCE)
    rng = random.Random(11)
    ds = instance(side=32)
    for _ in range(25):
        with associated(listener) as assoc:
            context = context_of(assoc)
            stream = bytearray(pdu(pdv(context, 3, command(ds.SOPInstanceUID))) + pdu(pdv(context, 2, encoded(ds))))
            for _ in range(rng.randint(1, 8)):
                stream[rng.randrange(min(len(stream), 300))] = rng.randrange(256)
            peer, noise = raw(assoc), stream[: rng.randint(1, len(stream))]
            with suppress(OSError):  # cut off while it is still sending
                peer.sendall(noise)
                peer.shutdown(socket.SHUT_WR)
            until(lambda a=assoc: not a.is_established, "the association to end")  # type: ignore[misc]
    until(lambda: listener.figures()["connections"] == 0, "all connections to end")
    assert echoes(listener.port)


# -- counting -----------------------------------------------------------------------------------------------------


def test_the_gate_counts_by_address_and_in_all() -> None:
    gate = Gate(associations=2, per_peer=1)
    here, there = plain_address("10.0.0.1"), plain_address("::ffff:10.0.0.2")
    assert str(there) == "10.0.0.2"
    assert plain_address("fe80::1%eth0").version == 6
    assert all(gate.enter(here) for _ in range(1 + SPARE_CONNECTIONS))
    assert not gate.enter(here)
    assert gate.enter(there)
    assert gate.admit(here)
    assert not gate.admit(here)
    assert gate.admit(there)
    assert not gate.admit(plain_address("10.0.0.3"))
    gate.leave(here, admitted=True)
    assert (gate.associations, gate.connections) == (1, 1 + SPARE_CONNECTIONS)
    assert gate.admit(here)


@pytest.fixture(autouse=True)
def _no_thread_is_left(listen: Listen) -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until(
        lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith("AcceptorThread")],
        "the threads of associations to end",
    )
