"""SIGKILL at many moments of each stage, drawn from a seed: before, or within milliseconds of, a change to the home.

A moment is told by how many changes the stage has made, not by a clock: the same seed kills at the same moments on
every machine (but for the few milliseconds that some blows are late by).
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest

from models.hospital import Destination
from tasks.cohort.write import write_cohort
from tests.faults.attempts import STAGES, Attempts, attempting
from tests.faults.night import Home
from tests.matrix import Figure, Times
from tests.tasks.deliver.installation import LIVER_AND_LESION, Installation, stores_at, write_study
from tests.tasks.deliver.pacs import Pacs, running

KILLS = 20
"""Of each stage."""
A_HOME = 8
"""About so often is one home killed before its stage is done."""


@dataclass(frozen=True)
class Calm:
    """An undisturbed night: its home as each stage left it, and how many changes the stage had made."""

    after: dict[str, Home]
    changes: dict[str, int]

    def before(self, stage: str, folder: Path) -> Home:
        """A new home where `stage` is next."""
        place = STAGES.index(stage)
        if place:
            done = self.after[STAGES[place - 1]]
            shutil.copytree(done.folder, folder)
            return Home(folder, done.cohort)
        return Home(folder, self.after[stage].cohort)


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attempts]:
    with attempting(tmp_path_factory.mktemp("attempts")) as made:
        yield made


@pytest.fixture(scope="module")
def calm(attempts: Attempts, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    root = tmp_path_factory.mktemp("calm")
    cohort = write_cohort(root / "demo", patients=10, broken=1).incoming
    home, after, changes = Home(root / "home", cohort), {}, {}
    for stage in STAGES:
        changes[stage] = attempts.make(home, stage).changes
        after[stage] = Home(root / stage, cohort)
        shutil.copytree(home.folder, after[stage].folder)
    return Calm(after, changes)


@pytest.mark.fault("stores/killed")
@pytest.mark.long
@pytest.mark.parametrize("stage", ["ingest", "preprocess", "train", "register"])
def test_a_stage_killed_again_and_again(
    stage: str, attempts: Attempts, calm: Calm, tmp_path: Path, figure: Figure
) -> None:
    draw, wanted = random.Random(stage), calm.after[stage]
    kills = homes = 0
    while kills < KILLS:
        homes += 1
        home = calm.before(stage, tmp_path / f"home{homes}")
        while kills < KILLS and attempts.strike(home, stage, draw, 2 * calm.changes[stage] // A_HOME):
            kills += 1
        assert not attempts.make(home, stage).killed
        assert home.hashes() == wanted.hashes()
        attempts.sweep(home)
        assert home.files() == wanted.files(), "a sweep leaves no garbage, and takes nothing that is of use"
        if stage == "register":
            assert registered(home) == registered(wanted)
    figure(f"{stage}: {kills} kills of {homes} homes, same hashes, nothing repeated, nothing left")


def registered(home: Home) -> list[tuple[Any, ...]]:
    """What MLflow's database holds: runs, versions, what was logged of them and how they are called."""
    asked = (
        "SELECT status, lifecycle_stage FROM runs",
        "SELECT name, version, current_stage FROM model_versions",
        "SELECT alias, version FROM registered_model_aliases",
        "SELECT key, step, count(*) FROM metrics GROUP BY key, step",
        "SELECT key, value FROM registered_model_tags",
    )
    with sqlite3.connect(home.folder / "mlflow.db") as connection:
        return [row for query in asked for row in sorted(connection.execute(query))]


# -- delivery -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with four studies in which something was found, and nothing delivered yet."""
    folder = tmp_path_factory.mktemp("analysed")
    installation = Installation(stores_at(folder / "home"))
    package = installation.package()
    for number in range(1, 5):
        write_study(folder / f"in{number}", number)
        (volume,) = installation.ingest(folder / f"in{number}")
        prediction = installation.segment(package, volume, LIVER_AND_LESION)
        installation.analysis(package, [prediction], volume.study)
    installation.stores.catalog.close()
    return folder / "home"


@pytest.mark.fault("stores/killed", "deliver/pacs")
def test_a_sender_killed_again_and_again_sends_each_finding_once(
    attempts: Attempts, analysed: Path, tmp_path: Path, times: Times, figure: Figure
) -> None:
    wanted, draw, kills, homes, repeats = times(3, full=KILLS), random.Random("deliver"), 0, 0, 0
    while kills < wanted:
        homes += 1
        home = Home(tmp_path / f"home{homes}", tmp_path)
        shutil.copytree(analysed, home.folder)
        with running(Pacs(finds=True)) as pacs:
            to = {"work": "deliver", "destinations": destinations(home, pacs)}
            while kills < wanted and attempts.strike(home, "deliver", draw, 30, **to):
                kills += 1
            assert not attempts.make(home, "deliver", **to).killed
        made = {row["delivery"]: json.loads(str(row["objects"])) for row in home.rows("deliveries")}
        assert {row["state"] for row in home.rows("deliveries")} == {"sent"}
        assert [row["done_at"] for row in home.rows("outbox") if row["done_at"] is None] == []
        arrived = [str(ds.SOPInstanceUID) for ds in pacs.stored]
        written = sorted((home.folder / "out").iterdir())
        assert len(made) == 8
        assert len(written) == len(set(arrived)) == sum(map(len, made.values())) // 2 == 8
        assert {str(pydicom.dcmread(file).SOPInstanceUID) for file in written} == {file.stem for file in written}
        repeats += len(arrived) - len(set(arrived))
    figure(f"deliver: {kills} kills, {homes} × 8 objects to a PACS and a folder, each there once, {repeats} resent")


def destinations(home: Home, pacs: Pacs) -> list[dict[str, Any]]:
    """A PACS, and a folder."""
    told: list[dict[str, Any]] = [
        {"name": "pacs", "kind": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port},
        {"name": "share", "kind": "folder", "path": str(home.folder / "out")},
    ]
    told[0] |= {"commitment": False, "timeout_seconds": 180.0}
    return [Destination.model_validate(one).model_dump(mode="json", exclude={"password"}) for one in told]
