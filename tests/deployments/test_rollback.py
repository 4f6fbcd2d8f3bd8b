"""One click: a champion is taken out of service, and the next study is analysed by the one before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deployments.blueprint import Blueprint, bring_up
from deployments.names import ARRIVALS, ARRIVALS_POOL
from flows.arrival import study_arrived
from flows.environment import open_stores
from flows.rollback import rollback
from models.hashing import content_key
from models.recipe import Recipe
from models.refs import PackageRef
from tasks.register import promotion
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import AnalysisRow, StudyVersionRow
from tests.components import part10, phantom_study, until
from tests.deployments.conftest import Served
from tests.tasks.predict.samples import a_package
from tests.tasks.register.samples import an_evaluation
from tests.tasks.train.samples import balls

NAME = "balls"
PATIENCE = 600.0
"""Seconds that a run may take whose process has to import everything first, on a machine that does other work too."""


@dataclass(frozen=True)
class Installation:
    """A home of its own on the tests' server, with two versions of a model, of which the second serves."""

    served: Served
    stores: Stores
    folder: Path
    packages: tuple[PackageRef, PackageRef]

    def study(self, number: int) -> str:
        """A study has arrived; returns its version's key."""
        stored = []
        for index, instance in enumerate(phantom_study(number)):
            file = self.folder / f"{number}-{index}.dcm"
            file.write_bytes(part10(instance))
            stored.append(self.stores.spool.adopt(file))
        key, study = content_key("version", number), stored[0].study
        instances = sorted(one.instance for one in stored)
        self.stores.catalog.add(
            StudyVersionRow(version=key, study=study, number=1, instances=instances, why="told", source="test")
        )
        return key

    def run(self, deployment: str, **parameters: object) -> None:
        """A run of a deployment, to its end."""
        run = self.served.start(deployment, **parameters)
        state = until(lambda: _ended(self.served.run(run)), f"the end of {deployment}", PATIENCE)
        assert state == "COMPLETED", self.served.run(run)["state"]

    def analysed(self, number: int) -> tuple[str, str]:
        """(version, package) of the model that said what an arrived study shows."""
        key = self.study(number)
        self.run(ARRIVALS, version={"key": key})
        (row,) = self.stores.catalog.find(AnalysisRow, AnalysisRow.version == key)
        assert row.outcome == "predicted", row.detail
        return row.model_version, row.package


def _ended(run: dict[str, object]) -> str:
    state = str(run["state_type"])
    return state if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else ""


@pytest.fixture
def installation(served: Served, tmp_path: Path) -> Installation:
    home = tmp_path / "home"
    settings = served.settings.model_copy(update={"home": home})
    stores = open_stores(settings)
    asked = {"name": NAME, "kind": "segmentation", "images": {"modality": "CT"}, "labels": {"source": "SEG"}}
    packages = tuple(a_package(stores, balls(), name, recipe=Recipe.model_validate(asked)) for name in ("one", "two"))
    for package in packages:
        folder = stores.packages.local(package.key)
        described = read_description(folder)
        judged = an_evaluation(described, dataset=described.dataset)
        promotion.register(stores.registry, stores.catalog, described, folder, judged)
    promotion.promote(stores.registry, stores.catalog, NAME, "2", who="ana", reason="for the test")
    environment = {**served.environment, "NOCTURNE_HOME": str(home)}
    bring_up(
        settings,
        [
            Blueprint(study_arrived, ARRIVALS.partition("/")[2], ARRIVALS_POOL, "as deployed", ("arrival",)),
            # In the process that keeps the models: nothing of what it remembers may outlive the rollback.
            Blueprint(rollback, "by-hand", ARRIVALS_POOL, "a rollback", ("by-hand",)),
        ],
    )
    return Installation(replace(served, settings=settings, environment=environment), stores, tmp_path, packages)


def test_the_next_study_is_analysed_by_the_champion_that_was_rolled_back_to(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, (first, second) = installation.served, installation.packages
    with served.worker("arrivals"):
        assert installation.analysed(1) == ("2", second.key)  # the warm process holds it from now on
        installation.run("rollback/by-hand", model=NAME, reason="misses the left lobe", name="ben")
        assert installation.analysed(2) == ("1", first.key)
    last = promotion.history(installation.stores.registry, installation.stores.catalog, NAME)[-1]
    assert (last.action, last.version, last.before) == ("rolled-back", "1", "2")
    assert (last.who, last.reasons) == ("ben", ["misses the left lobe"])

    # Nobody gave a name: the run is told instead.
    promotion.promote(installation.stores.registry, installation.stores.catalog, NAME, "2", who="ana", reason="again")
    monkeypatch.setenv("NOCTURNE_HOME", str(served.settings.home))
    with served.spoken_to():
        done = rollback(NAME, "still misses it")
    assert (done.before, done.serving, done.who) == ("2", "1", "prefect")
    last = promotion.history(installation.stores.registry, installation.stores.catalog, NAME)[-1]
    assert last.who == "prefect"
    assert "still misses it (run " in last.reasons[0]
