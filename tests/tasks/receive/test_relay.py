"""The relay: an event is posted until it is acknowledged, always as the same event."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.receive.completion import event_payload
from tasks.receive.relay import EventRelay, event_id
from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Outbox
from tasks.stores.tables import OutboxRow, StudyVersionRow, now
from tests.components import free_port


class Server(ThreadingHTTPServer):
    """Takes events as Prefect's server does; answers from a list, then 204."""

    def __init__(self, *answers: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.posted, self.authorised = list(answers), [], []
        self.api = f"http://127.0.0.1:{self.server_port}/api"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    answers: list[int]
    posted: list[dict[str, Any]]
    authorised: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.authorised.append(self.headers.get("Authorization", ""))
        answer = self.server.answers.pop(0) if self.server.answers else 204
        if answer == 204:
            self.server.posted += json.loads(body)
        self.send_response(answer)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        return


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    for n in range(3):
        row = StudyVersionRow(version=f"v{n}", study=f"2.25.{n}", number=1, instances=["a"], why="quiet")
        with opened.transaction() as session:
            opened.insert(session, row)
            Outbox(opened).put(session, "event", f"arrived-{row.version}", event_payload(row))
    yield opened
    opened.close()


def due_now(catalog: Catalog) -> None:
    catalog.change(OutboxRow, OutboxRow.done_at.is_(None), due_at=now() - timedelta(seconds=1))


def test_every_version_is_told_once_with_its_own_id_and_typed_reference(catalog: Catalog) -> None:
    server = Server()
    relay = EventRelay(catalog, server.api)
    assert [relay.run_due(), relay.run_due()] == [3, 0]
    relay.close()
    server.shutdown()
    assert {e["id"] for e in server.posted} == {str(event_id(f"v{n}")) for n in range(3)}
    first = next(e for e in server.posted if e["payload"]["version"]["key"] == "v0")
    assert first["event"] == "nocturne.study.arrived"
    assert first["resource"]["prefect.resource.id"] == "nocturne.study.v0"


def test_a_server_that_is_away_loses_nothing_and_status_can_say_why(catalog: Catalog) -> None:
    relay = EventRelay(catalog, f"http://127.0.0.1:{free_port()}/api")
    for _ in range(4):
        assert relay.run_due() == 0
        due_now(catalog)
    relay.close()
    assert Outbox(catalog).waiting("event") == 3
    assert any("away" in row.error for row in catalog.find(OutboxRow))
    back = Server()
    relay = EventRelay(catalog, back.api)
    assert relay.run_due() == 3
    relay.close()
    back.shutdown()
    assert len(back.posted) == 3


@pytest.mark.parametrize(("answer", "told"), [(503, "503"), (401, "prefect_auth"), (422, "422")])
def test_a_refusal_is_kept_and_told_and_tried_again(catalog: Catalog, answer: int, told: str) -> None:
    server = Server(answer)
    relay = EventRelay(catalog, server.api, auth="nocturne:secret")
    assert relay.run_due() == 0
    assert any(told in row.error for row in catalog.find(OutboxRow))
    due_now(catalog)
    assert relay.run_due() == 3
    relay.close()
    server.shutdown()
    assert server.authorised[0] == "Basic " + base64.b64encode(b"nocturne:secret").decode()
    assert len(server.posted) == 3
