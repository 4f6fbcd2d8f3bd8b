"""The outbox: nothing is lost, nothing is taken twice at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Outbox
from tasks.stores.tables import OutboxRow, now


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    opened = Catalog(database_url)
    yield opened
    opened.close()


def put(catalog: Catalog, *messages: str) -> list[bool]:
    outbox = Outbox(catalog)
    with catalog.transaction() as session:
        return [outbox.put(session, "event", message, {"of": message}) for message in messages]


def test_the_same_message_is_put_once_and_taken_until_acknowledged(catalog: Catalog) -> None:
    outbox = Outbox(catalog)
    assert put(catalog, "a", "a") == [True, False]
    (taken,) = outbox.take("event", lease_seconds=0, limit=5)
    assert (taken.message, taken.payload, taken.attempts) == ("a", {"of": "a"}, 1)
    (again,) = outbox.take("event", lease_seconds=60, limit=5)
    assert again.attempts == 2
    assert outbox.take("event", lease_seconds=60) == []
    assert outbox.waiting("event") == 1
    outbox.acknowledged("a")
    assert outbox.waiting("event") == 0
    assert put(catalog, "a") == [False]


def test_a_message_belongs_to_its_transaction(catalog: Catalog) -> None:
    outbox = Outbox(catalog)

    def interrupted() -> None:
        with catalog.transaction() as session:
            outbox.put(session, "event", "a", {})
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    assert outbox.waiting("event") == 0


def test_a_postponed_message_waits_longer_each_time_and_says_why(catalog: Catalog) -> None:
    outbox = Outbox(catalog)
    put(catalog, "a")
    outbox.take("event", lease_seconds=0)
    delays = [outbox.postponed("a", "the server is away", attempts=n) for n in (1, 4, 30)]
    assert 1 <= delays[0] <= 2 < 8 <= delays[1] <= 16 < 150 <= delays[2] <= 300
    (row,) = catalog.find(OutboxRow)
    assert row.error == "the server is away"
    assert row.due_at > now()
    assert outbox.take("event", lease_seconds=0) == []


def test_two_senders_never_have_the_same_message(catalog: Catalog) -> None:
    messages = [f"m{n}" for n in range(40)]
    put(catalog, *messages)

    def sender(_: int) -> list[str]:
        outbox, mine = Outbox(catalog), []
        while taken := outbox.take("event", lease_seconds=60, limit=3):
            mine += [m.message for m in taken]
        return mine

    with ThreadPoolExecutor(4) as pool:
        taken = [message for part in pool.map(sender, range(4)) for message in part]
    assert sorted(taken) == sorted(messages)


def test_one_message_is_taken_by_name(catalog: Catalog) -> None:
    outbox = Outbox(catalog)
    put(catalog, "a", "b")
    taken = outbox.take_one("b", lease_seconds=60)
    assert taken is not None
    assert taken.message == "b"
    assert outbox.take_one("b", lease_seconds=60) is None
    assert outbox.take_one("c", lease_seconds=60) is None
