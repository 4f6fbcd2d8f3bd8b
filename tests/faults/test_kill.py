"""SIGKILL in the middle of a night, at each stage: the next start finishes it, and repeats nothing that was done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.cohort.write import write_cohort
from tests.faults.night import Home


def in_ingest(home: Home) -> bool:
    return len(home.rows("volumes")) >= 2


def in_preprocess(home: Home) -> bool:
    return bool(home.rows("plans")) and len(home.published("prepared")) >= 2


def in_train(home: Home) -> bool:
    return bool(home.checkpoints())


def in_register(home: Home) -> bool:
    return bool(home.rows("evaluations"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "demo", patients=10, broken=1).incoming


@pytest.mark.fault("stores/killed")
def test_a_night_killed_at_every_stage_ends_as_if_undisturbed(cohort: Path, tmp_path: Path) -> None:
    calm, killed = Home(tmp_path / "calm", cohort), Home(tmp_path / "killed", cohort)
    calm.finish()

    for moment, gate in (
        (in_ingest, "third volume"),
        (in_preprocess, "package"),
        (in_train, "package"),
        (in_register, "registration"),
    ):
        before, stores = killed.written(), {s: killed.published(s) for s in ("volumes", "prepared", "packages")}
        killed.kill_when(moment, gate)
        after = killed.written()
        for table, rows in before.items():
            assert rows <= after[table], f"{table} written again before {moment.__name__}"
        for store, kept in stores.items():
            assert kept.items() <= killed.published(store).items(), f"{store} made again before {moment.__name__}"
        visible(killed)

    before = killed.written()
    told = killed.finish()
    assert "promoted" in told
    assert all(rows <= killed.written()[table] for table, rows in before.items())

    for table, column in (("datasets", "dataset"), ("packages", "weights_sha256"), ("evaluations", "evaluation")):
        assert {r[column] for r in killed.rows(table)} == {r[column] for r in calm.rows(table)}, table
    assert {r["volume"] for r in killed.rows("volumes")} == {r["volume"] for r in calm.rows("volumes")}
    assert [(r["action"], r["version"]) for r in killed.rows("decisions")] == [("promoted", "1")]

    # And once more: nothing is left to do.
    finished = killed.written()
    killed.finish()
    assert killed.written() == finished


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
