"""An alert is told once, stays open while it is so, and is resolved when it has moved back."""

from __future__ import annotations

import pytest

from models.watching import Shift, Watched
from tasks.receive.relay import EventRelay, event_id
from tasks.stores.alerts import alert_key, open_alerts, settle
from tasks.stores.catalog import Catalog
from tasks.stores.house import Stores
from tasks.stores.outbox import Outbox
from tasks.stores.tables import AlertRow, DatasetRecord, PackageRow
from tests.tasks.receive.test_relay import Server

FAR = Shift(kind="input", measure="spacing z", how="ks", value=0.0, threshold=0.001, cases=50, told="1 mm then, 2 now")
BINS = FAR.model_copy(update={"how": "psi", "value": 3.0, "threshold": 0.25})
NEAR = FAR.model_copy(update={"value": 0.9})


@pytest.fixture
def catalog(stores: Stores) -> Catalog:
    stores.catalog.add(
        DatasetRecord(dataset="d", name="liver", kind="segmentation", classes=[], counts={}),
        *(PackageRow(package=key, name="liver", dataset="d", weights_sha256="0") for key in ("p1", "p2")),
    )
    return stores.catalog


def watched(*shifts: Shift, package: str = "p1") -> Watched:
    return Watched(name="liver", version="1", package=package, cases=50, shifts=shifts)


def measures(catalog: Catalog) -> list[str]:
    return [row.measure for row in open_alerts(catalog, "liver")]


def test_what_two_tests_find_is_one_alert_and_it_is_told_once(catalog: Catalog) -> None:
    assert settle(catalog, watched(FAR, BINS), "first") == (alert_key("p1", "spacing z", "first"),)
    assert settle(catalog, watched(FAR, BINS), "first") == ()
    assert settle(catalog, watched(FAR, BINS), "a later window") == ()
    assert measures(catalog) == ["spacing z"]
    assert Outbox(catalog).waiting("event") == 1


def test_what_has_moved_back_is_resolved_and_may_move_again(catalog: Catalog) -> None:
    settle(catalog, watched(FAR), "first")
    settle(catalog, watched(NEAR), "first")
    assert measures(catalog) == []
    assert settle(catalog, watched(FAR), "second") != ()
    assert measures(catalog) == ["spacing z"]
    assert catalog.count(AlertRow) == Outbox(catalog).waiting("event") == 2


def test_what_could_not_be_measured_stays_as_it_was(catalog: Catalog) -> None:
    settle(catalog, watched(FAR), "first")
    settle(catalog, watched(), "second")
    assert measures(catalog) == ["spacing z"]


def test_another_version_keeps_an_alert_that_still_holds_and_ends_those_of_the_old_ones_words(catalog: Catalog) -> None:
    said = FAR.model_copy(update={"kind": "output", "measure": "volume of liver"})
    settle(catalog, watched(FAR, said), "first")
    assert settle(catalog, watched(FAR, package="p2"), "second") == ()
    assert measures(catalog) == ["spacing z"]


def test_the_same_window_by_another_rule_opens_it_again_and_tells_nobody(catalog: Catalog) -> None:
    settle(catalog, watched(FAR), "first")
    settle(catalog, watched(NEAR), "first")
    assert settle(catalog, watched(FAR), "first") == ()
    assert measures(catalog) == ["spacing z"]
    assert Outbox(catalog).waiting("event") == 1


def test_the_relay_posts_it_under_an_id_of_its_own(catalog: Catalog) -> None:
    (key,) = settle(catalog, watched(FAR), "first")
    server = Server()
    relay = EventRelay(catalog, server.api)
    assert [relay.run_due(), relay.run_due()] == [1, 0]
    relay.close()
    server.shutdown()
    (event,) = server.posted
    assert (event["id"], event["event"]) == (str(event_id(key)), "nocturne.model.drifted")
    assert event["resource"]["prefect.resource.id"] == "nocturne.model.liver"
    assert {k: event["payload"][k] for k in ("model", "measure", "kind", "told", "cases")} == {
        "model": "liver",
        "measure": "spacing z",
        "kind": "input",
        "told": "1 mm then, 2 now",
        "cases": 50,
    }
