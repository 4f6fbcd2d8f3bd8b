"""A listener that is killed at random moments while senders send, and the account of what it had acknowledged."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from models.errors import NocturneError
from models.pseudonyms import Pseudonymizer
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool, digest_of
from tasks.stores.tables import ArrivalRow, InstanceRow
from tests.components import free_port
from tests.tasks.receive.peer import associate
from tests.tasks.receive.samples import encoded, instance

START_SECONDS = 180


class Killed:
    """`serve` gives the command of a listener for a home folder and a port; `run` kills it again and again."""

    def __init__(self, home: Path, serve: Callable[[Path, int], list[str]], secret: bytes, *, side: int = 256) -> None:
        self._home, self._serve = home, serve
        self._names = Pseudonymizer(secret)
        self._side = side
        self._acknowledged: dict[str, str] = {}  # digest to pseudonymous study
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._port = 0

    def run(self, kills: int, associations: int) -> tuple[int, int]:
        """How many instances were acknowledged, and how many of them are not there, whole and in the catalog."""
        self._port = free_port()
        senders = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(associations)]
        process = self._start()
        for sender in senders:
            sender.start()
        for turn in range(kills):
            before = len(self._acknowledged)
            self._wait(lambda b=before: len(self._acknowledged) >= b + 2 * associations)  # type: ignore[misc]
            time.sleep(random.Random(turn).uniform(0, 0.5))  # a moment that nobody chose
            process.kill()
            process.wait()
            if turn + 1 < kills:
                process = self._start()
        self._over.set()
        for sender in senders:
            sender.join(START_SECONDS)
        return len(self._acknowledged), self._lost()

    def _lost(self) -> int:
        """After the recovery that every start makes."""
        catalog = Catalog(f"sqlite:///{self._home / 'catalog.db'}")
        spool = Spool(self._home / "spool", self._names)
        with Reception(catalog, spool, self._names, source="listener") as reception:
            reception.recover()
        rows = {row.instance: row for row in catalog.find(InstanceRow)}
        lost = [name for name, study in self._acknowledged.items() if name not in rows or rows[name].study != study]
        for name, row in rows.items():
            try:
                spool.verify(spool.path(row.study, name))
            except NocturneError:
                lost.append(name)
        waiting = sum(row.waiting for row in catalog.find(ArrivalRow))
        catalog.close()
        return len(set(lost)) + abs(waiting - len(rows))

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._home / "log").open("ab") as log:
            process = subprocess.Popen(self._serve(self._home, self._port), stdout=log, stderr=log)
        self._wait(lambda: process.poll() is not None or listens(self._port))
        if process.poll() is not None:
            raise RuntimeError(f"the listener does not start: {(self._home / 'log').read_text()[-2000:]}")
        return process

    def _send(self, number: int) -> None:
        """One sender: it goes on over every kill, and notes what was acknowledged."""
        study, seed = generate_uid(), 0
        template = instance(study, side=self._side, seed=number)
        while not self._over.is_set():
            ae = AE(f"SCU{number}")
            ae.acse_timeout = ae.network_timeout = ae.connection_timeout = 20
            ae.dimse_timeout = 3  # pynetdicom may not notice that its association has ended before it waits
            ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
            assoc = associate(ae, self._port)
            while assoc.is_established and not self._over.is_set():
                seed += 1
                self._store(assoc, _another(template, seed), study)
            if assoc.is_established:
                assoc.abort()
            self._over.wait(0.02)

    def _store(self, assoc: object, ds: Dataset, study: str) -> None:
        try:
            answer = assoc.send_c_store(ds)  # type: ignore[attr-defined]
        except (RuntimeError, ValueError, AttributeError):
            return  # it was killed before it began
        if "Status" in answer and answer.Status == 0:
            with self._lock:
                self._acknowledged[digest_of(ExplicitVRLittleEndian, [encoded(ds)])] = self._names.uid(study)

    def _wait(self, holds: Callable[[], bool]) -> None:
        until = time.monotonic() + START_SECONDS
        while not holds():
            if time.monotonic() > until:
                raise TimeoutError(f"nothing happens: {(self._home / 'log').read_text()[-2000:]}")
            time.sleep(0.01)


def _another(template: Dataset, seed: int) -> Dataset:
    ds = deepcopy(template)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.InstanceNumber = seed
    return ds


def listens(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
