"""A Dask scheduler and its workers for tests, started by command as a user would: on loopback, with TLS or without."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from distributed import Client, Security

from tasks.stores.house import DaskTls
from tests.components import _ATTEMPTS, _listens, _Process, free_port, until

ROOT = Path(__file__).parents[1]


@dataclass
class DaskCluster:
    """A running scheduler, and workers as they are started."""

    folder: Path
    port: int
    tls: DaskTls | None = None
    scheduler: _Process | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{'tls' if self.tls else 'tcp'}://127.0.0.1:{self.port}"

    @property
    def options(self) -> list[str]:
        """That scheduler and workers share."""
        if self.tls is None:
            return []
        tls = self.tls
        return ["--tls-ca-file", str(tls.ca), "--tls-cert", str(tls.cert), "--tls-key", str(tls.key)]

    def start_worker(
        self, *options: str, environment: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.Popen[bytes]:
        """`dask worker ADDRESS`, in a process group of its own."""
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, *self.options, *options]
        command += ["--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard"]
        command += ["--local-directory", str(self.folder)]
        with (self.folder / "workers.log").open("ab") as log:
            worker = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(self.folder), **(environment or {})},
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """The worker and its nanny, at once."""
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.workers.remove(worker)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the test's own."""
        security = None
        if self.tls:
            files = {"tls_ca_file": self.tls.ca, "tls_client_cert": self.tls.cert, "tls_client_key": self.tls.key}
            security = Security(require_encryption=True, **{name: str(file) for name, file in files.items()})
        with Client(self.address, timeout=120, security=security, set_as_default=False) as client:
            yield client

    def await_workers(self, count: int) -> None:
        """Until so many are there, and no more."""
        with self.client() as client:
            until(lambda: len(client.scheduler_info()["workers"]) == count, f"{count} workers are there")

    def log(self) -> str:
        return (self.folder / "workers.log").read_text(errors="replace")[-3000:]


@contextmanager
def running_dask(folder: Path, *, tls: DaskTls | None = None, workers: int = 0) -> Iterator[DaskCluster]:
    """`dask scheduler`, and so many workers of one thread each."""
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        cluster = DaskCluster(folder, free_port(), tls)
        command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "distributed.cli.dask_scheduler"]
        command += [
            "--host",
            cluster.address.rpartition(":")[0],
            "--port",
            str(cluster.port),
            "--no-dashboard",
            "--dashboard-address",
            "127.0.0.1:0",
        ]
        command += cluster.options
        cluster.scheduler = _Process(command, folder / "scheduler.log", lambda c=cluster: _listens(c.port))  # type: ignore[misc]
        if cluster.scheduler.start():
            break
    else:
        pytest.fail(f"the scheduler does not start: {(folder / 'scheduler.log').read_text()[-2000:]}")
    try:
        for _ in range(workers):
            cluster.start_worker()
        if workers:
            cluster.await_workers(workers)
        yield cluster
    finally:
        for worker in list(cluster.workers):
            cluster.kill(worker)
        cluster.scheduler.stop(at_once=True)


def certificates(folder: Path) -> DaskTls:
    """An authority of its own, and a certificate that it signed, valid for a day."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _signed("nocturne test authority", authority, authority, "nocturne test authority", ca=True)
    cert = _signed("127.0.0.1", key, authority, "nocturne test authority", ca=False)
    files = DaskTls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    files.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    files.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    files.key.touch(mode=0o600)
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, issuer: str, *, ca: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(by, hashes.SHA256())
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
