"""An HTTP server before another one, which fails on the requests that a test names: for real, on a socket."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["500", "503", "cut", "lost"]
"""An answer that says so; a connection that ends before the request is carried out, or after."""

_OF_THE_CONNECTION = {"connection", "transfer-encoding", "keep-alive"}
_PATIENCE = 120.0


class Failing:
    """Passes every request on, but for those that `fail` names. Safe to share between threads."""

    def __init__(self, target: int) -> None:
        self._target, self._lock = target, threading.Lock()
        self._fault: Fault | None = None
        self._faulty = range(0)
        self.asked: list[str] = []
        """Of each request since the last `fail`, its method and path."""

    def fail(self, fault: Fault | None, *, at: int = 0, times: int = 1_000_000) -> None:
        """From the request number `at`, counted from now, `times` of them fail."""
        with self._lock:
            self._fault, self._faulty = fault, range(at, at + times)
            self.asked = []

    @property
    def failed(self) -> int:
        """How many requests have failed since then."""
        with self._lock:
            return len(range(len(self.asked))[self._faulty.start : self._faulty.stop]) if self._fault else 0

    def next(self, request: str) -> Fault | None:
        """What becomes of this one."""
        with self._lock:
            self.asked.append(request)
            return self._fault if len(self.asked) - 1 in self._faulty else None

    def passed_on(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """The other's status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self._target, timeout=_PATIENCE)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


@contextmanager
def failing(port: int, target: int) -> Iterator[Failing]:
    """Listens on `port` of the loopback interface meanwhile."""
    before = Failing(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self._body()
            fault = before.next(f"{self.command} {self.path.partition('?')[0]}")
            if fault in ("500", "503"):
                self._answer(int(fault), [], b"")
                return
            if fault != "cut":
                kept = {name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_CONNECTION}
                answer = before.passed_on(self.command, self.path, kept, body)
                if fault is None:
                    self._answer(*answer)
                    return
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in {*_OF_THE_CONNECTION, "content-length"}:
                    self.send_header(name, value)
            asked_for = [value for name, value in headers if name.lower() == "content-length"]
            length = asked_for[0] if self.command == "HEAD" and asked_for else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    for method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._handle)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield before
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
