"""Hostile senders against a listener in a process of its own: its memory, its patience, and the others meanwhile."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from models.hospital import Completion
from tasks.receive.completion import Completer
from tasks.stores.tables import ArrivalRow, InstanceRow, StudyVersionRow
from tests.components import dcmtk, needs, until
from tests.faults.listening import Running, looking_at, running
from tests.matrix import Figure, Times
from tests.tasks.receive.peer import associate, sender
from tests.tasks.receive.samples import encoded, instance, write
from tests.tasks.receive.test_transport import command, connect, context_of, echoes, ended, pdu, pdv, raw

GROWTH_MB = 10.0
PATIENT = 120.0


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Running]:
    """With the settings that users get, and one instance already received, so that all that is loaded is loaded."""
    with running(tmp_path, max_instance_bytes=8 << 20) as one:
        store(one, instance(side=64))
        until(lambda: one.connections() == 0, "the first association to end")
        yield one


def store(listener: Running, *datasets: Dataset, title: str = "SCU") -> list[int]:
    ae = sender(title)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = associate(ae, listener.port)
    assert assoc.is_established
    answers = [int(assoc.send_c_store(ds).Status) for ds in datasets]
    assoc.release()
    return answers


def closing(peers: list[socket.socket]) -> float:
    """Seconds until the listener has closed all of them."""
    begun = time.monotonic()
    for peer in peers:
        peer.settimeout(PATIENT)
        ended(peer)
    return time.monotonic() - begun


def grown(listener: Running, before: float) -> float:
    return max(0.0, listener.memory_mb() - before)


@pytest.mark.fault("receive/huge-pdu")
def test_pdus_that_claim_four_gigabytes(listener: Running, figure: Figure) -> None:
    before = listener.memory_mb()
    with ExitStack() as held:
        peers = [held.enter_context(connect(listener.port, source=f"127.0.0.{2 + n}")) for n in range(20)]
        for peer in peers:
            with suppress(OSError):
                peer.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + bytes(1000))
        assert echoes(listener.port)
        seconds = closing(peers)
    figure(f"20 at once: +{grown(listener, before):.1f} MB, closed in {seconds:.1f} s")
    assert grown(listener, before) < GROWTH_MB


@pytest.mark.fault("receive/idle", "receive/partial-pdu")
@pytest.mark.parametrize("begun", [b"", b"\1\0\0"], ids=["nothing", "half a header"])
def test_sixty_sockets_that_say_nothing_or_half(listener: Running, figure: Figure, begun: bytes) -> None:
    before = listener.memory_mb()
    with ExitStack() as held:
        peers = [held.enter_context(connect(listener.port, source=f"127.0.1.{1 + n % 20}")) for n in range(60)]
        for peer in peers:
            with suppress(OSError):
                peer.sendall(begun)
        until(lambda: echoes(listener.port), "an echo")
        growth = grown(listener, before)
        seconds = closing(peers)
    figure(f"60 with {'half a header' if begun else 'nothing'}: +{growth:.1f} MB, closed in {seconds:.1f} s")
    assert growth < GROWTH_MB
    assert echoes(listener.port)


@pytest.mark.fault("receive/endless")
def test_an_instance_without_end(listener: Running, figure: Figure) -> None:
    kept, before, sent = listener.kept(), listener.memory_mb(), 0
    ae = sender()
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = associate(ae, listener.port)
    ds = instance(side=64)
    endless = pdu(pdv(context_of(assoc), 0, bytes(100_000)))
    stream = raw(assoc)
    peak = before
    with suppress(OSError):
        stream.sendall(pdu(pdv(context_of(assoc), 3, command(ds.SOPInstanceUID))))
        stream.sendall(pdu(pdv(context_of(assoc), 0, encoded(ds)[:5000])))
        while sent < 200 << 20:
            stream.sendall(endless)
            sent += 100_000
            peak = max(peak, listener.memory_mb())
    until(lambda: not assoc.is_established, "the association to be aborted")
    until(lambda: listener.connections() == 0, "the connection to end")
    figure(f"aborted after {sent / 1e6:.0f} MB (cap 8 MB an instance), +{peak - before:.1f} MB")
    assert sent < 100 << 20
    assert peak - before < GROWTH_MB
    assert listener.kept() == kept
    assert echoes(listener.port)


@pytest.mark.fault("receive/slow")
def test_one_byte_at_a_time(listener: Running, figure: Figure) -> None:
    begun, sent, over = time.monotonic(), 0, threading.Event()
    with connect(listener.port) as peer:
        peer.sendall(struct.pack(">BBL", 1, 0, 1000))
        while not over.wait(1.0) and time.monotonic() - begun < PATIENT:
            try:
                peer.sendall(b"x")
                sent += 1
            except OSError:
                over.set()
            assert echoes(listener.port)
    figure(f"cut off after {sent} bytes, {time.monotonic() - begun:.0f} s")
    assert over.is_set()


@pytest.mark.fault("receive/sender-killed")
def test_senders_that_are_killed_in_the_middle_of_an_object(
    listener: Running, tmp_path: Path, times: Times, figure: Figure
) -> None:
    needs("storescu")
    rng, killed = random.Random(3), times(4, full=50)
    study = generate_uid()
    kept = set(listener.kept())
    for turn in range(killed):
        folder = tmp_path / f"turn{turn}"
        write(folder, *(instance(study, side=900, seed=n) for n in range(4)))
        process = subprocess.Popen(
            [dcmtk("storescu"), "-aec", "NOCTURNE", "+sd", "127.0.0.1", str(listener.port), str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: listener.connections() > 0 or process.poll() is not None, "the sender to connect")  # noqa: B023
        time.sleep(rng.uniform(0, 0.15))  # a moment that nobody chose
        process.kill()
        process.wait()
    until(lambda: listener.connections() == 0, "the connections to end")
    there = set(listener.kept())
    assert not [path for path in there if path.suffix == ".part"]
    assert kept <= there
    with looking_at(listener.home) as (catalog, spool):
        for row in catalog.find(InstanceRow):
            spool.verify(spool.path(row.study, row.instance))
    figure(f"{killed} killed: {len(there - kept)} of {4 * killed} instances kept, all whole")


@pytest.mark.fault("receive/interleaved")
def test_four_associations_of_one_study_at_once(listener: Running, figure: Figure) -> None:
    study, each = generate_uid(), 6
    ready, answers = threading.Barrier(4), []

    def send(number: int) -> None:
        slices = [instance(study, seed=10 * number + n, InstanceNumber=10 * number + n) for n in range(each)]
        ready.wait(PATIENT)
        answers.extend(store(listener, *slices, title=f"SCU{number}"))

    senders = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for one in senders:
        one.start()
    for one in senders:
        one.join(PATIENT)
    assert answers == [0] * 4 * each
    with looking_at(listener.home) as (catalog, _):
        catalog.change(ArrivalRow, told_at=None)
        Completer(catalog, {"listener": Completion(quiet_seconds=0)}, Completion()).look()
        versions = [v for v in catalog.find(StudyVersionRow) if len(v.instances) > 1]
    assert [(v.number, len(v.instances)) for v in versions] == [(1, 4 * each)]
    figure(f"4 associations, {4 * each} instances, one version of one study")


@pytest.mark.fault("receive/unknown-caller")
def test_a_stranger_is_refused_while_others_are_served(tmp_path: Path) -> None:
    with running(tmp_path, callers=[{"ae_title": "CT1", "addresses": ["127.0.0.1/32"]}]) as listener:
        for title in ("NOBODY", "CT1"):
            ae = sender(title)
            ae.add_requested_context(Verification)
            assoc = associate(ae, listener.port)
            assert assoc.is_established is (title == "CT1")
            if assoc.is_established:
                assoc.release()
        with connect(listener.port, source="127.0.0.9") as elsewhere:
            assert ended(elsewhere) == b""
