"""A listener in a process of its own: what it takes of memory is its own, and killing it kills nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from models.pseudonyms import Pseudonymizer
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool
from tests.components import free_port, until
from tests.tasks.receive.killing import listens
from tests.tasks.receive.serve import SECRET


@dataclass(frozen=True)
class Running:
    """One listener."""

    process: subprocess.Popen[bytes]
    port: int
    home: Path

    def memory_mb(self) -> float:
        """Resident."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6

    def connections(self) -> int:
        """Open sockets beside the one that listens."""
        there = psutil.Process(self.process.pid).net_connections("tcp")
        return sum(one.status == psutil.CONN_ESTABLISHED for one in there)

    def kept(self) -> list[Path]:
        """Instances in the spool; partial files too, by their own name."""
        return [path for kind in ("*.dcm", "*.part") for path in (self.home / "spool").rglob(kind)]


@contextmanager
def running(home: Path, **settings: object) -> Iterator[Running]:
    """Started for real; ended with SIGTERM."""
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.tasks.receive.serve", str(home), str(port), json.dumps(settings)]
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or listens(port), "the listener to start", 180)
        assert process.poll() is None, (home / "log").read_text()[-2000:]
        yield Running(process, port, home)
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def looking_at(home: Path) -> Iterator[tuple[Catalog, Spool]]:
    """Its stores after the recovery that every start makes."""
    names = Pseudonymizer(SECRET)
    catalog, spool = Catalog(f"sqlite:///{home / 'catalog.db'}"), Spool(home / "spool", names)
    with Reception(catalog, spool, names, source="listener") as reception:
        reception.recover()
    yield catalog, spool
    catalog.close()
