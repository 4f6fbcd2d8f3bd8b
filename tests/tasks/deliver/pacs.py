"""The other side: an AE that can be told how to answer, and proxies that lose answers on their way."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from models.hospital import Tls
from tasks.deliver.dimse import FIND

SUCCESS = 0x0000
_N_ACTION_ANSWER = struct.pack("<HHLH", 0, 0x0100, 2, 0x8130)
"""The element of a command that says what it is (PS3.7 E.1)."""


@dataclass
class Pacs:
    """An AE on loopback. `answer` gives the status of each C-STORE; what was stored is in `stored`, in order.

    `commits`: whether it offers storage commitment; `answers`: whether it answers on the same association; `failing`
    are the SOP Instance UIDs that it then says it has not. `finds`: whether it can be asked by C-FIND.
    """

    port: int = 0
    classes: tuple[str, ...] = (SegmentationStorage, ComprehensiveSRStorage)
    answer: Callable[[Dataset], int] = lambda ds: SUCCESS
    commits: bool = False
    answers: bool = True
    finds: bool = False
    failing: set[str] = field(default_factory=set)
    stored: list[Dataset] = field(default_factory=list)
    asked: list[Dataset] = field(default_factory=list)

    def store(self, event: evt.Event) -> int:
        ds = event.dataset
        status = self.answer(ds)
        if status == SUCCESS:
            self.stored.append(ds)
        return status

    def find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for ds in self.stored:
            if ds.SOPInstanceUID == event.identifier.SOPInstanceUID:
                answer = Dataset()
                answer.QueryRetrieveLevel, answer.SOPInstanceUID = "IMAGE", ds.SOPInstanceUID
                yield 0xFF00, answer

    def commit(self, event: evt.Event) -> tuple[int, None]:
        self.asked.append(event.action_information)
        return SUCCESS, None

    def sent(self, event: evt.Event) -> None:
        """Report once the request itself has been answered: pynetdicom would let the report go first."""
        if self.answers and _N_ACTION_ANSWER in event.pdu.encode():
            threading.Thread(target=self._report, args=(event.assoc, self.asked[-1]), daemon=True).start()

    def _report(self, association: Any, request: Dataset) -> None:
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        there = [i for i in request.ReferencedSOPSequence if i.ReferencedSOPInstanceUID not in self.failing]
        lost = [i for i in request.ReferencedSOPSequence if i.ReferencedSOPInstanceUID in self.failing]
        report.ReferencedSOPSequence = there
        for item in lost:
            item.FailureReason = 0x0112
        if lost:
            report.FailedSOPSequence = lost
        association.send_n_event_report(report, 2 if lost else 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")


@contextmanager
def running(pacs: Pacs, *, tls: Any = None) -> Iterator[Pacs]:
    """Listens on a free port of loopback."""
    ae = AE(ae_title="PACS")
    for sop_class in pacs.classes:
        ae.add_supported_context(sop_class, [ExplicitVRLittleEndian])
    if pacs.commits:
        ae.add_supported_context(StorageCommitmentPushModel)
    if pacs.finds:
        ae.add_supported_context(FIND)
    handlers = [
        (evt.EVT_C_STORE, pacs.store),
        (evt.EVT_N_ACTION, pacs.commit),
        (evt.EVT_PDU_SENT, pacs.sent),
        (evt.EVT_C_FIND, pacs.find),
    ]
    server = ae.start_server(("127.0.0.1", pacs.port), block=False, evt_handlers=handlers, ssl_context=tls)
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        server.shutdown()


def certificates(folder: Path) -> Tls:
    """A key and a certificate for loopback, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin = datetime.now(UTC) - timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Tls(certificate=folder / "certificate.pem", key=folder / "key.pem", authority=folder / "certificate.pem")


def server_context(tls: Tls) -> ssl.SSLContext:
    """The other side of mutual TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls.authority))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(str(tls.certificate), str(tls.key))
    return context


# -- answers that are lost ----------------------------------------------------------------------------------------


@contextmanager
def losing_answers(port: int, keep: Callable[[bytes], bool]) -> Iterator[int]:
    """A proxy to `port`: all that is asked arrives, and with the first answer that `keep` does not want the connection
    is lost. Yields its own port.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for source, target, wanted in ((client, server, None), (server, client, keep)):
                    threading.Thread(target=_pass_on, args=(source, target, wanted), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def _pass_on(source: socket.socket, target: socket.socket, wanted: Callable[[bytes], bool] | None) -> None:
    with suppress(OSError), source, target:
        try:
            while (data := source.recv(1 << 16)) and (wanted is None or wanted(data)):
                target.sendall(data)
        finally:
            for end in (source, target):  # whoever waits at one of them is woken
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def no_dimse_answers(data: bytes) -> bool:
    """Associations are accepted and released; the first message (a P-DATA-TF, PS3.8 9.3.5) is lost."""
    return data[0] != 0x04


# -- a DICOMweb server that refuses -------------------------------------------------------------------------------


@contextmanager
def answering(status: int, body: bytes = b"", found: bytes = b"[]") -> Iterator[tuple[str, list[str]]]:
    """A server that answers STOW-RS with `status` and QIDO-RS with `found`. Yields its root, and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append("stow")
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(status, body)

        def do_GET(self) -> None:
            asked.append("qido")
            self._answer(200, found)

        def _answer(self, code: int, content: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web", asked
    finally:
        server.shutdown()
        server.server_close()
