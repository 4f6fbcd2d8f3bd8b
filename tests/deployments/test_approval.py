"""A model that wants to serve waits for a person: yes, no, and no answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from deployments.blueprint import Blueprint, bring_up
from deployments.names import ARRIVALS, ARRIVALS_POOL
from deployments.watchdog import Watchdog
from flows.environment import open_stores
from models.evaluation import Comparison, Evaluation
from models.package import PACKAGE_FILE
from tasks.stores.house import Stores
from tasks.stores.tables import DatasetRecord, DecisionRow, PackageRow
from tests.components import until
from tests.deployments.asking import asking
from tests.deployments.conftest import Served
from tests.deployments.trivial import study_arrived
from tests.tasks.register.samples import a_comparison, a_dataset, a_package, an_evaluation

NAME = "liver"


@dataclass
class Nights:
    """Nights of one model up to the question."""

    served: Served
    stores: Stores

    def judged(self, number: int, before: Evaluation | None = None) -> tuple[Evaluation, dict[str, Any]]:
        """A package with its evaluation in the stores, better than `before`; and the flow's parameters for it."""
        stores = self.stores
        dataset = stores.datasets.write(a_dataset())
        with stores.packages.staging() as staged:
            package = a_package(staged, name=NAME, number=number).model_copy(update={"dataset": dataset.key})
            (staged / PACKAGE_FILE).write_text(package.model_dump_json(indent=1))
            stores.packages.publish(staged, package.key)
        record = DatasetRecord(dataset=dataset.key, name=NAME, kind="segmentation", classes=[], counts={})
        row = PackageRow(package=package.key, name=NAME, dataset=dataset.key, weights_sha256=package.weights_sha256)
        stores.catalog.add(record, row)
        after = an_evaluation(package, 0.8 + number / 100, dataset=dataset.key)
        stores.evaluations.write(after.digest, after, pd.DataFrame({"case": [1]}), ())
        comparison: Comparison | None = a_comparison(before, after, 0.005, 0.01, 0.015) if before else None
        return after, {
            "name": NAME,
            "package": {"key": package.key},
            "after": {"key": after.digest},
            "before": {"key": before.digest} if before else None,
            "comparison": comparison.model_dump(mode="json") if comparison else None,
        }

    def ask(self, **parameters: Any) -> str:
        """A run that has come to the question; returns its id."""
        run = self.served.start("asking/by-hand", **parameters)
        self.served.await_state(run, "Suspended")
        return run

    def answer(self, run: str, **form: Any) -> str:
        """Send the form in; returns what the server says to it."""
        return str(self.served.post(f"/flow_runs/{run}/resume", {"run_input": form})["status"])

    @property
    def trail(self) -> list[DecisionRow]:
        return list(self.stores.catalog.find(DecisionRow, order_by=DecisionRow.number))

    @property
    def champion(self) -> str | None:
        found = self.stores.registry.champion(NAME)
        return found.version if found else None


@pytest.fixture(scope="module")
def nights(served: Served) -> Iterator[Nights]:
    ask = Blueprint(asking, "by-hand", ARRIVALS_POOL, "a stand-in", ("training",))
    arrivals = Blueprint(study_arrived, ARRIVALS.partition("/")[2], ARRIVALS_POOL, "a stand-in", ("arrival",))
    bring_up(served.settings, [ask, arrivals])
    with served.worker("arrivals"):
        yield Nights(served, open_stores(served.settings))


def test_a_person_says_yes_or_no_and_without_an_answer_the_champion_stays(nights: Nights) -> None:
    first, asked = nights.judged(1)
    run = nights.ask(**asked)
    assert nights.answer(run, approve=True, reason="an unsigned yes") == "REJECT"
    assert nights.served.run(run)["state_name"] == "Suspended"
    assert nights.answer(run, approve=True, name="ana", reason="looks right") == "ACCEPT"
    nights.served.await_state(run, "Completed")
    assert nights.champion == "1"
    assert (nights.trail[0].action, nights.trail[0].who) == ("promoted", "ana")
    assert nights.trail[0].reasons[0] == "approved by ana: looks right"

    _, asked = nights.judged(2, first)
    run = nights.ask(**asked)
    shown = nights.served.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})[0]["data"]
    assert "| dice | all | 0.8200 | 0.8000 to 0.8400 | 0.8100 |" in shown
    assert nights.answer(run, approve=False, name="ben", reason="misses the left lobe") == "ACCEPT"
    nights.served.await_state(run, "Completed")
    assert nights.champion == "1"
    assert (nights.trail[1].action, nights.trail[1].who) == ("kept", "ben")
    assert nights.trail[1].reasons[0] == "declined by ben: misses the left lobe"

    _, asked = nights.judged(3, first)
    run = nights.ask(**asked, approval_hours=0.0001)
    assert until(Watchdog(nights.served.settings).look, "the watchdog's answer") == 1
    nights.served.await_state(run, "Completed")
    assert nights.champion == "1"
    assert (nights.trail[2].action, nights.trail[2].who) == ("kept", "nocturne")
    assert nights.trail[2].reasons[0] == "nobody answered within 0.0001 hours"


def test_where_nobody_can_be_asked_the_model_stays_challenger_and_the_way_on_is_told(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOCTURNE_HOME", str(nights.served.settings.home))
    first, _ = nights.judged(1)
    _, asked = nights.judged(4, first)
    with nights.served.spoken_to():
        assert asking(**asked) == "kept"
    assert "nocturne models promote liver" in nights.trail[-1].reasons[0]
