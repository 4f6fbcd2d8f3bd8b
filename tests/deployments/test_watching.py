"""What serves is looked at by a run on a real server; the commands tell the same."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flows.environment import open_stores
from flows.watching import watch
from models.settings import Settings
from tasks.register.promotion import promote
from tasks.stores.alerts import open_alerts
from tasks.stores.house import Stores
from tasks.stores.outbox import Outbox
from tasks.stores.packages import read_description
from tests.deployments.conftest import Served
from tests.flows.test_cli import nocturne
from tests.tasks.watch.installation import WORLD, facts_of, recorded, trained_on

RNG = np.random.default_rng(0)


def radiographs(count: int, brightness: float) -> np.ndarray:
    return (brightness * RNG.uniform(0.8, 1.2, (count, 1, 1)) * RNG.uniform(50, 150, (count, 28, 28))).astype(
        np.float32
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOCTURNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def stores(home: Path) -> Iterator[Stores]:
    """A model serves, and was shown twenty-five images twice as bright as those that it learnt from."""
    stores = open_stores(Settings(home=home))
    package = trained_on(stores, facts_of(radiographs(30, 1.0)), "1").package
    folder = stores.packages.local(package.key)
    stores.registry.log_package(read_description(folder), folder, metrics={})
    promote(stores.registry, stores.catalog, WORLD.recipe.name, "1", who="a test", reason="it is the first")
    recorded(stores, package, radiographs(25, 2.0))
    yield stores
    stores.catalog.close()


def test_a_run_raises_alerts_once_and_the_commands_show_them(
    served: Served, stores: Stores, home: Path, tmp_path: Path
) -> None:
    with served.spoken_to():
        (first,) = watch()
        (second,) = watch()
    assert first == second
    assert (first.name, first.version, first.cases) == (WORLD.recipe.name, "1", 25)
    raised = {row.measure for row in open_alerts(stores.catalog)}
    assert "median of intensities" in raised
    assert raised == {shift.measure for shift in first.alerts}
    assert Outbox(stores.catalog).waiting("event") == len(raised)
    (table,) = served.post("/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["drift"]}}})
    assert "median of intensities" in table["data"]
    (table,) = served.post("/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["studies"]}}})
    assert "0 = 0 delivered + 0 quarantined + 0 waiting" in table["data"]

    told = nocturne("drift", home=home)
    assert told.returncode == 0, told.stderr
    assert "Open alerts" in told.stdout
    assert "median of intensities" in told.stdout
    told = nocturne("status", home=home)
    assert f"{WORLD.recipe.name}: " in next(line for line in told.stdout.splitlines() if "open alerts" in line)

    file = tmp_path / "next.csv"
    told = nocturne("suggest", WORLD.recipe.name, "--count", "3", "--csv", str(file), home=home)
    assert told.returncode == 0, told.stderr
    with file.open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3
    assert all(row["study"] in told.stdout and row["why"] for row in rows)
