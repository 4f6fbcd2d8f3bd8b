"""An installation as `nocturne up` runs it, every secret of which is a word that occurs nowhere else."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil

from tests.components import free_port, until
from tests.faults.night import RECIPE

ROOT = Path(__file__).parents[2]
PATIENCE = 1800.0
OURS = ("listener", "watch", "relay", "worker", "arrivals")
NAMES = ("prefect", "mlflow", "feed", "peer", "hook", "mail", "catalog", "tracking", "runs", "objects", "wrong")


def word(name: str) -> str:
    """A password that is found again: letters and digits, as no encoding of an address changes them."""
    return f"Hush{hashlib.sha256(name.encode()).hexdigest()[:20]}"


def key(name: str) -> str:
    """A secret of 32 bytes, in hexadecimal."""
    return hashlib.sha256(f"key of {name}".encode()).hexdigest()


def markers() -> dict[str, bytes]:
    """What must be found nowhere, by what it is: words, keys, and what becomes of them on their way."""
    found = {name: word(name).encode() for name in NAMES}
    for name in ("prefect", "mlflow"):
        found[f"{name}, as sent"] = base64.b64encode(f"ana:{word(name)}".encode())
    for name in ("secret", "vault"):
        found[name] = key(name).encode()
        found[f"{name}, raw"] = bytes.fromhex(key(name))
        found[f"{name}, in base 64"] = base64.b64encode(bytes.fromhex(key(name)))
    return found


class Refuser(BaseHTTPRequestHandler):
    """Whoever asks is refused; what was asked is counted by its first part."""

    asked: dict[str, int] = {}  # noqa: RUF012 - of the one server in this process

    def refuse(self) -> None:
        """401, whatever it was."""
        part = self.path.strip("/").partition("/")[0]
        self.asked[part] = self.asked.get(part, 0) + 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = refuse  # noqa: N815 - the standard library's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
        """Says nothing."""


@dataclass
class Installation:
    """One home folder, its processes, and whatever they ever had as arguments."""

    folder: Path
    more: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    prefect_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)
    refuser: ThreadingHTTPServer = field(default_factory=lambda: ThreadingHTTPServer(("127.0.0.1", 0), Refuser))
    up: subprocess.Popen[bytes] | None = None
    arguments: set[str] = field(default_factory=set)

    @property
    def home(self) -> Path:
        """Its home folder."""
        return self.folder / "home"

    @property
    def prefect(self) -> str:
        """The server's API, as this machine reaches it."""
        return f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def mlflow(self) -> str:
        """MLflow's pages."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every command."""
        return {
            **os.environ,
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
            "NOCTURNE_HOME": str(self.home),
            "NOCTURNE_SECRET": key("secret"),
            "NOCTURNE_VAULT_KEY": key("vault"),
            "NOCTURNE_PREFECT_AUTH": f"ana:{word('prefect')}",
            "NOCTURNE_MLFLOW_AUTH": f"ana:{word('mlflow')}",
            "AWS_SECRET_ACCESS_KEY": word("objects"),
            **self.more,
        }

    def settle(self) -> None:
        """Write its settings, with a password wherever one may be."""
        self.home.mkdir(parents=True)
        (self.home / "small.toml").write_text(RECIPE, encoding="utf-8")
        refuser = f"http://127.0.0.1:{self.refuser.server_port}"
        shared = f'user = "ana"\npassword = "{word("peer")}"'
        file = self.home / "nocturne.toml"
        file.touch(mode=0o600)
        file.write_text(
            f"""
[services]
host = "{self.host}"
prefect_port = {self.prefect_port}
mlflow_port = {self.mlflow_port}

[listener]
port = {free_port()}
free_bytes = 0

[[orthanc]]
name = "feed"
url = "{refuser}/feed"
user = "ana"
password = "{word("feed")}"

[[peers]]
name = "pacs"
url = "{refuser}/peer"
{shared}

[[destinations]]
name = "archive"
kind = "dicomweb"
url = "{refuser}/destination"
{shared}

[nightly]
recipes = ["small.toml"]
watch = ""

[notify]
webhook = "{refuser}/hook/{word("hook")}"
email = ["imaging@hospital.example"]
smtp = "mailto://ana:{word("mail")}@127.0.0.1:1?from=nocturne@hospital.example"
""",
            encoding="utf-8",
        )

    def command(self, *words: str, **more: str) -> tuple[int, str]:
        """Run a `nocturne` command to its end; its exit code, and what it printed, which is kept too."""
        done = subprocess.run(
            [sys.executable, "-m", "flows", *words],
            env={**self.environment, **more},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        with (self.folder / "printed").open("a", encoding="utf-8") as kept:
            kept.write(f"== {words[0]}: {done.returncode}\n{done.stdout}\n")
        return done.returncode, done.stdout

    def start(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a `nocturne` command that stays; what it prints is kept."""
        with (self.folder / f"{words[-1]}.printed").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flows", *words],
                env={**self.environment, **more},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def open(self) -> None:
        """`nocturne up`; returns once every process is there."""
        self.up = self.start("up")
        until(self._lives, f"`nocturne up` runs everything, in {self.folder}", PATIENCE)

    def _lives(self) -> bool:
        assert self.up
        assert self.up.poll() is None, (self.folder / "up.printed").read_text()
        signs = {file.stem for file in (self.home / "run").glob("*.json")}
        deployed = "deployed" in log.read_text() if (log := self.home / "logs" / "deploy.log").exists() else False
        return signs.issuperset(OURS) and deployed and answers(f"{self.mlflow}/health") == 200

    def close(self) -> None:
        """Stop it as Ctrl-C does."""
        if self.up and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            self.up.wait(PATIENCE)

    def processes(self) -> list[psutil.Process]:
        """`nocturne up` and everything that it has started."""
        assert self.up
        first = psutil.Process(self.up.pid)
        return [first, *first.children(recursive=True)]

    def listening(self) -> dict[tuple[str, int], str]:
        """Where its processes listen, and which of them."""
        found = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                for one in process.net_connections("inet"):
                    if one.status == psutil.CONN_LISTEN:
                        found[one.laddr.ip, one.laddr.port] = " ".join(process.cmdline()[1:])
        return found

    def leaks(self) -> list[str]:
        """Each secret that is in a file but the settings, or was among a process's arguments."""
        told = [
            f"{what} in {file.relative_to(self.folder)}"
            for file in self.folder.rglob("*")
            if file.is_file() and file != self.home / "nocturne.toml"
            for what in leaking(file.read_bytes())
        ]
        return told + [f"{what} in arguments" for what in leaking("\n".join(self.arguments).encode())]


def leaking(content: bytes) -> list[str]:
    """What secrets are in there."""
    return [what for what, secret in markers().items() if secret in content]


@contextmanager
def installed(folder: Path, host: str = "127.0.0.1", **more: str) -> Iterator[Installation]:
    """Settled and watched, not started; stopped at the end."""
    one = Installation(folder, more, host)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            with suppress(psutil.Error):
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        one.arguments.add(" ".join(process.cmdline()))

    threads = [threading.Thread(target=work, daemon=True) for work in (watch, one.refuser.serve_forever)]
    Refuser.asked.clear()
    one.settle()
    for thread in threads:
        thread.start()
    try:
        yield one
    finally:
        one.close()
        over.set()
        one.refuser.shutdown()
        one.refuser.server_close()


def answers(url: str, auth: tuple[str, str] | None = None) -> int:
    """The HTTP status of a page; 0 where nobody answers."""
    try:
        return httpx.get(url, auth=auth, timeout=180, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def other_address() -> str | None:
    """An address of this machine that other machines could use; None where it has none."""
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return str(one.address)
    return None


def reached(host: str, port: int) -> bool:
    """Whether a connection can be opened."""
    with socket.socket() as probe:
        probe.settimeout(60)
        return probe.connect_ex((host, port)) == 0
