"""What holds for a night as a whole."""

from __future__ import annotations

import logging
import threading

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from deployments.pools import make_pools
from flows.night import for_this_night, one_training_at_a_time
from tasks.door import door
from tests.components import DEADLINE_SECONDS, until
from tests.deployments.conftest import Served


@pytest.fixture
def limited(served: Served) -> Served:
    with served.spoken_to(), get_client(sync_client=True) as client:
        make_pools(client)
    return served


def test_a_second_training_waits_for_the_first(limited: Served) -> None:
    inside: list[str] = []
    most: list[int] = []
    go_on = threading.Event()

    @flow(name="training")
    def train(name: str) -> None:
        with one_training_at_a_time():
            inside.append(name)
            most.append(len(inside))
            go_on.wait(DEADLINE_SECONDS)
            inside.remove(name)

    def start(name: str) -> None:
        with limited.spoken_to():  # settings are a thread's own
            train(name)

    threads = [threading.Thread(target=start, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    until(lambda: inside, "the first training")
    until(lambda: limited.get("/v2/concurrency_limits/gpu")["active_slots"] == 1, "the limit's use")
    go_on.set()
    for thread in threads:
        thread.join(2 * DEADLINE_SECONDS)
    assert most == [1, 1]


def test_a_server_without_the_limit_lets_everybody_pass_and_warns_of_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flows.night.GPU", "a limit that nobody made")

    @flow(name="training")
    def train() -> str:
        with one_training_at_a_time():
            return "trained"

    with served.spoken_to():
        assert train() == "trained"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_door_that_stands_for_the_night_is_opened_once_a_run(served: Served) -> None:
    opened: list[str] = []

    @door("build")
    def build(name: str) -> str:
        opened.append(name)
        return f"{name}, built {len(opened)} times"

    @flow(name="night", retries=1)
    def night() -> str:
        built = for_this_night(build)("liver")
        if len(opened) == 1 and not again:
            again.append(True)
            raise ConnectionError("something away, for a moment")
        return built

    again: list[bool] = []
    with served.spoken_to():
        assert night() == "liver, built 1 times"
        assert again
        assert night() == "liver, built 2 times"  # another night looks anew
