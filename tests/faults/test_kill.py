"""SIGKILL in the middle of a night: the next start finishes it, and repeats nothing that was done."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tasks.cohort.write import write_cohort
from tests.faults.attempts import attempting
from tests.faults.held import ENOUGH
from tests.faults.night import Home, Standing
from tests.matrix import Figure, Times


def in_ingest(home: Home) -> bool:
    return len(home.rows("volumes")) >= 2


def in_preprocess(home: Home) -> bool:
    return bool(home.rows("plans")) and len(home.published("prepared")) >= 2


def in_train(home: Home) -> bool:
    return bool(home.checkpoints())


def in_register(home: Home) -> bool:
    return bool(home.rows("evaluations"))


MOMENTS = (
    (in_ingest, "third volume"),
    (in_preprocess, "package"),
    (in_train, "package"),
    (in_register, "registration"),
)
WITHIN = {"ingest": 300, "preprocess": 200, "train": 100, "register": 80}
"""Changes of each stage, of which one is drawn."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "demo", patients=10, broken=1).incoming


@pytest.fixture(scope="module")
def calm(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("calm") / "home", cohort)
    assert "promoted" in home.finish()
    return home


@pytest.mark.fault("stores/killed")
def test_a_night_killed_at_every_stage_ends_as_if_undisturbed(
    calm: Home, tmp_path: Path, times: Times, figure: Figure
) -> None:
    killed, stages = Home(tmp_path / "killed", calm.cohort), times(2, full=len(MOMENTS))
    for moment, gate in MOMENTS[-stages:]:
        before = Standing.of(killed)
        killed.kill_when(moment, gate)
        before.holds(Standing.of(killed), moment.__name__)
        visible(killed)

    before = Standing.of(killed)
    assert "promoted" in killed.finish()
    before.holds(Standing.of(killed), "the last kill")
    assert killed.hashes() == calm.hashes()

    # And once more: nothing is left to do.
    finished = Standing.of(killed)
    killed.finish()
    assert Standing.of(killed).rows == finished.rows
    figure(f"the command killed in {stages} stages: same hashes, nothing repeated")


@pytest.mark.fault("stores/killed")
def test_a_night_killed_at_drawn_changes_ends_as_if_undisturbed(calm: Home, tmp_path: Path, figure: Figure) -> None:
    home, draw, kills = Home(tmp_path / "home", calm.cohort), random.Random(7), 0
    with attempting(tmp_path) as attempts:
        for stage, changes in WITHIN.items():
            kills += attempts.strike(home, stage, draw, changes)
            visible(home)
        before = Standing.of(home)
        assert not attempts.make(home, "register").killed
        before.holds(Standing.of(home), "the last kill")
        attempts.sweep(home)
    assert home.hashes() == calm.hashes()
    assert home.files() == calm.files(), "a sweep leaves no garbage, and takes nothing that is of use"
    figure(f"{kills} kills at drawn changes in {len(WITHIN)} stages: same hashes; after the sweep no file too many")


@pytest.mark.fault("stores/locked")
def test_a_catalog_that_is_locked_in_the_middle_of_a_night(
    calm: Home, tmp_path: Path, times: Times, figure: Figure
) -> None:
    home, real = Home(tmp_path / "home", calm.cohort), times(0, full=1)
    told = home.finish("locked" if real else "locked soon")
    met = re.findall(r"is locked by another process for over \S+ s — [^—]+ \(process \d+\) holds catalog\.db", told)
    assert len(met) >= ENOUGH, told
    assert home.hashes() == calm.hashes()
    assert len(home.rows("packages")) == len(home.rows("decisions")) == 1
    figure(f"locked by another program, told {len(met)} times with its name, then finished: same hashes, nothing twice")


def visible(home: Home) -> None:
    """Whatever the catalog names is there and whole."""
    from tasks.stores.volumes import VolumeStore

    store = VolumeStore(str(home.folder / "volumes"))
    for row in home.rows("volumes"):
        assert store.open(str(row["volume"])).read().array.size
    for row in home.rows("labels"):
        assert store.open_mask(str(row["label"])).read().occupancy.size
    present = home.published("packages")
    assert all(row["package"] in present for row in home.rows("packages"))
