"""From an event to a run in the warm process, and what becomes of runs that fail, die, are cancelled or interrupted."""

from __future__ import annotations

import socketserver
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from deployments.blueprint import Blueprint, bring_up
from deployments.names import ARRIVALS_POOL
from deployments.watchdog import Patience, Watchdog
from models.watching import Shift, Watched
from tasks.receive.relay import EventRelay
from tasks.stores.alerts import settle
from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Outbox
from tasks.stores.tables import DatasetRecord, PackageRow
from tests.components import DEADLINE_SECONDS, until
from tests.deployments.conftest import Served
from tests.deployments.trivial import study_arrived

AT_ONCE = Patience(silent_seconds=1.0, restart_seconds=(0.0, 0.0, 0.0))


pytestmark = pytest.mark.usefixtures("worker")


@dataclass
class Told:
    """What was posted and mailed."""

    posts: list[bytes] = field(default_factory=list)
    mails: list[str] = field(default_factory=list)
    http: int = 0
    smtp: int = 0


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """A web hook's receiver and a mail server."""
    told = Told()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.posts.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on the screen."""

    class Mail(socketserver.StreamRequestHandler):
        answers: ClassVar = {b"DATA": b"354 go on", b"QUIT": b"221 bye"}

        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                word = line.strip().upper()[:4]
                self.wfile.write(self.answers.get(word, b"250 well") + b"\r\n")
                if word == b"DATA":
                    lines: list[bytes] = []
                    while (text := self.rfile.readline()) not in (b".\r\n", b""):
                        lines.append(text)
                    told.mails.append(b"".join(lines).decode())
                    self.wfile.write(b"250 taken\r\n")

    class Post(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as http, Post(("127.0.0.1", 0), Mail) as smtp:
        for server in (http, smtp):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        told.http, told.smtp = http.server_address[1], smtp.server_address[1]
        yield told
        for server in (http, smtp):
            server.shutdown()


@pytest.fixture(scope="module")
def deployed(served: Served, told: Told) -> Served:
    notify = {
        "webhook": f"http://127.0.0.1:{told.http}/hook",
        "email": ("night@example.org",),
        "smtp": f"mailto://127.0.0.1:{told.smtp}?from=nocturne@example.org&mode=insecure",
    }
    settings = served.settings.model_copy(update={"notify": type(served.settings.notify).model_validate(notify)})
    bring_up(settings, [Blueprint(study_arrived, "arrivals", ARRIVALS_POOL, "a stand-in", ("arrival",))])
    return served


@pytest.fixture(scope="module")
def worker(deployed: Served) -> Iterator[subprocess.Popen[bytes]]:
    with deployed.worker("arrivals", grace=0.5) as process:
        yield process


def only_run(served: Served, key: str) -> str:
    """The id of the one run for a version, once it is there."""
    until(lambda: served.runs_of(key), f"a run for {key}")
    (run,) = served.runs_of(key)
    return str(run["id"])


def test_an_event_starts_one_run_in_the_warm_process_with_a_typed_parameter(deployed: Served) -> None:
    deployed.emit("first")
    run = deployed.await_state(only_run(deployed, "first"), "Completed")
    assert run["name"] == "study first"
    deployed.emit("second")
    deployed.await_state(only_run(deployed, "second"), "Completed")
    ((one, kind),) = deployed.seen("first")
    ((other, _),) = deployed.seen("second")
    assert kind == "StudyVersionRef"
    assert one == other


def test_an_event_that_is_told_twice_starts_one_run(deployed: Served) -> None:
    deployed.emit("twice")
    deployed.await_state(only_run(deployed, "twice"), "Completed")
    deployed.emit("twice")
    deployed.emit("after-twice")  # events are handled in order
    deployed.await_state(only_run(deployed, "after-twice"), "Completed")
    assert len(deployed.runs_of("twice")) == 1
    assert len(deployed.seen("twice")) == 1


def test_a_run_that_fails_is_told_to_people_and_does_not_end_the_worker(deployed: Served, told: Told) -> None:
    (deployed.folder / "bad.fail").touch()
    deployed.emit("bad")
    run = deployed.await_state(only_run(deployed, "bad"), "Failed")
    post = until(lambda: _about("study bad", [body.decode() for body in told.posts]), "a post")
    mail = until(lambda: _about("study bad", [m.replace("=\n", "").replace("=\r\n", "") for m in told.mails]), "a mail")
    for text in (post, mail):
        assert "asked to fail" in text
    assert f"/runs/flow-run/{run['id']}" in post
    assert "study arrived/arrivals" in post
    deployed.emit("good")
    deployed.await_state(only_run(deployed, "good"), "Completed")
    assert deployed.seen("good")[0][0] == deployed.seen("bad")[0][0]


def test_a_model_whose_data_have_moved_is_told_to_people_once(deployed: Served, told: Told) -> None:
    catalog = Catalog(f"sqlite:///{deployed.folder / 'moved.db'}")
    catalog.add(
        DatasetRecord(dataset="d", name="liver", kind="segmentation", classes=[], counts={}),
        PackageRow(package="p", name="liver", dataset="d", weights_sha256="0" * 64),
    )
    words = "median 1.1 mm in training, 2.2 mm now"
    shift = Shift(kind="input", measure="spacing z", how="ks", value=0, threshold=0.001, cases=50, told=words)
    watched = Watched(name="liver", version="7", package="p", cases=50, shifts=(shift,))
    relay = EventRelay(catalog, deployed.api)
    for _ in range(3):
        settle(catalog, watched, "first")
        relay.run_due()
    post = until(lambda: _about("spacing z (input)", [body.decode() for body in told.posts]), "a post")
    assert words in post
    assert "nocturne drift liver" in post
    until(
        lambda: _about("spacing z (input)", [m.replace("=\n", "").replace("=\r\n", "") for m in told.mails]), "a mail"
    )
    assert Outbox(catalog).waiting("event") == 0
    assert sum("liver: spacing z has moved" in body.decode() for body in told.posts) == 1
    relay.close()
    catalog.close()


def _about(what: str, texts: list[str]) -> str:
    return next((text for text in texts if what in text), "")


def test_a_run_that_is_cancelled_ends_and_the_next_one_runs(deployed: Served) -> None:
    wait = deployed.folder / "stopped.wait"
    wait.touch()
    deployed.emit("stopped")
    run = only_run(deployed, "stopped")
    until(lambda: deployed.seen("stopped") and deployed.run(run)["infrastructure_pid"], "the run's process")
    state = {"type": "CANCELLING", "name": "Cancelling"}
    deployed.post(f"/flow_runs/{run}/set_state", {"state": state})
    deployed.await_state(run, "Cancelled")
    deployed.emit("next")
    deployed.await_state(only_run(deployed, "next"), "Completed")
    assert deployed.seen("next")[0][0] != deployed.seen("stopped")[0][0]


def test_a_process_that_dies_crashes_its_run_and_the_watchdog_starts_it_again(deployed: Served) -> None:
    (deployed.folder / "dying.die").touch()
    deployed.emit("dying")
    run = only_run(deployed, "dying")
    deployed.await_state(run, "Crashed")
    assert Watchdog(deployed.settings, AT_ONCE).look() == 1
    deployed.await_state(run, "Completed")
    assert len(deployed.seen("dying")) == 2


def test_a_worker_that_is_stopped_hands_its_run_back_to_the_next(
    deployed: Served, worker: subprocess.Popen[bytes]
) -> None:
    wait = deployed.folder / "interrupted.wait"
    wait.touch()
    deployed.emit("interrupted")
    run = only_run(deployed, "interrupted")
    until(lambda: deployed.seen("interrupted"), "the run's process")
    worker.terminate()
    assert worker.wait(timeout=DEADLINE_SECONDS) == 0
    assert deployed.states(run)[-1] == "AwaitingRetry"
    wait.unlink()
    with deployed.worker("arrivals"):
        deployed.await_state(run, "Completed")
    assert "Crashed" not in deployed.states(run)
