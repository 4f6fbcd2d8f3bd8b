"""Where every study is: in `nocturne status`, for people and for machines, and what `nocturne doctor` says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from flows.commands.looking import _document
from flows.doctor import _account
from flows.views import account_told, overview
from models.account import Account
from models.settings import Settings
from tasks.stores.house import Stores
from tasks.stores.tables import OutboxRow
from tests.tasks.deliver.installation import stores_at
from tests.tasks.stores.test_account import one_of_each


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    stores = stores_at(tmp_path)
    yield stores
    stores.catalog.close()


def test_the_figure_is_always_there(stores: Stores) -> None:
    assert ("studies received", "0 = 0 delivered + 0 quarantined + 0 waiting") in overview(stores)
    one_of_each(stores)
    told = dict(overview(stores))
    assert told["studies received"] == "4 = 1 delivered + 0 quarantined + 3 waiting"
    assert told["of the delivered"] == "1 with every destination"
    assert told["of the waiting"] == "1 coming in, 1 to be analysed, 1 in the outbox"
    assert told["instances received"] == "4"


def test_what_was_refused_as_it_came_is_told_apart() -> None:
    told = dict(account_told(Account(received=0, unfiled=1200)))
    assert told["refused as they came"] == "1,200 instances, in quarantine"


def test_a_machine_is_told_the_same(stores: Stores) -> None:
    one_of_each(stores)
    told = json.loads(json.dumps(_document(Settings(home=stores.locations.home), stores)))["account"]
    assert told["received"] == told["delivered"] + told["quarantined"] + told["waiting"] == 4
    assert told["holds"] is True


def test_doctor_names_what_waits_for_ever(stores: Stores) -> None:
    history = one_of_each(stores)
    assert not _account(stores).failed
    with stores.catalog.transaction() as session:
        session.execute(delete(OutboxRow).where(OutboxRow.kind == "delivery"))
    check = _account(stores)
    assert check.failed
    assert f"{history.studies[1].name} (a delivery waits, and nothing in the outbox sends it)" in check.advice
