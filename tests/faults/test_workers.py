"""Processes that learn together, and workers that prepare: one of them runs short of memory, or meets no number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import TrainingError, WorkerLostError
from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from models.volume import Volume
from tasks.preprocess.cluster import compute_client
from tasks.preprocess.run import Case, case_key, prepare_dataset
from tasks.stores.prepared import PreparedStore
from tasks.stores.volumes import VolumeStore
from tasks.train.distributed import learn_jointly
from tasks.train.learning import Job, learn, learnt_already
from tasks.train.loop import Termination
from tests.dask_cluster import running_dask
from tests.faults.spoiling import HOPELESS_FROM, SHORT_AT, SITE, spoil
from tests.matrix import Figure
from tests.tasks.preprocess.cases import READING, write_cohort
from tests.tasks.train.test_distributed import farthest, job_of, newest, world


@pytest.fixture
def spoiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every process that is started reads what is to go wrong in it."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def position(job: Job) -> dict[str, object]:
    return dict(newest(job).values["position"])


@pytest.mark.fault("compute/nan")
def test_two_processes_skip_what_is_not_finite_together_and_stop_with_the_reason(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    two, one = (job_of(world(epochs=4), spoiled, name) for name in ("two", "one"))
    monkeypatch.setenv("SPOILED", "nan")
    learn_jointly(two, 2, Termination())
    assert not learnt_already(two)
    jointly = newest(two)
    spoil("nan", monkeypatch)
    for job in (two, one):  # what they could not finish, one process takes up: and says why
        with pytest.raises(TrainingError) as caught:
            learn(job, Termination())
        assert caught.value.reason == "loss-not-finite"
    assert jointly.values["position"]["processes"] == 2
    assert jointly.step > HOPELESS_FROM
    assert all(torch.isfinite(tensor).all() for tensor in jointly.tensors.values() if tensor.is_floating_point())
    assert farthest(newest(one), jointly) < 1e-5
    figure("two processes: the same steps skipped, the same weights as of one, the same reason")


@pytest.mark.fault("compute/cuda-memory")
@pytest.mark.parametrize(
    "where",
    [
        "forward",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("gather", "loss", "backward", "update")),
    ],
)
def test_one_of_two_processes_runs_short_and_both_go_on_with_half_the_batch(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, where: str, figure: Figure
) -> None:
    two = job_of(world(batch_size=4), spoiled, "two")
    monkeypatch.setenv("SPOILED", where)
    learn_jointly(two, 2, Termination())
    assert learnt_already(two), (two.workspace / "joint" / "log.txt").read_text()[-4000:]
    stood = position(two)
    assert (stood["processes"], stood["batch_size"]) == (2, 2)
    notes = [str(note) for note in stood["notes"]]  # type: ignore[attr-defined]
    assert [note for note in notes if "halved to 2" in note]
    assert math.isfinite(newest(two).values["position"]["history"][-1][1])
    # Where the others are in the middle of adding up, all begin anew from the last checkpoint.
    anew = any(f"resumed at step {SHORT_AT}" in note for note in notes)
    assert anew is (where in ("backward", "update"))
    figure(f"{where}: halved by both {'after a new start' if anew else 'at once'}")


FINE = PreparePlan(dimensions=3, spacing=(0.5, 0.5, 0.5), crop="none", normalisation=(Normalisation(scheme="zscore"),))


def large_case(url: Path) -> Case:
    """A gigabyte and more, once it is prepared."""
    array = np.zeros((100, 300, 300), np.int16)
    array[20:60, 50:200, 50:200] = 100
    VolumeStore(str(url)).write("large", Volume(array, Geometry.from_spacing(array.shape, (2.0, 1.0, 1.0)), "MR"))
    return Case(str(url), "large", target=0)


@pytest.mark.fault("compute/worker")
@pytest.mark.long
def test_a_case_for_which_a_worker_has_too_little_memory_is_named_and_done_where_there_is_more(
    tmp_path: Path, figure: Figure
) -> None:
    volumes, root = tmp_path / "volumes", tmp_path / "prepared"
    small, large = write_cohort(volumes, 5), large_case(volumes)
    cases, store = [large, *small], PreparedStore(root)
    keys = {case: case_key(case, READING, FINE) for case in cases}
    with running_dask(tmp_path / "dask") as dask:
        dask.start_worker("--memory-limit", "700MB")
        dask.await_workers(1)
        with compute_client(dask.address, 0) as client:
            with pytest.raises(WorkerLostError) as caught:
                prepare_dataset(client, cases, READING, FINE, root)
            assert caught.value.where == "large"
            assert "--memory-limit" in str(caught.value)
            assert "preprocess.spacing" in str(caught.value)
            assert set(store._place.keys()) == {keys[case] for case in small}  # no partial, and nobody lost beside it

            dask.start_worker("--memory-limit", "0")
            dask.await_workers(2)
            done = prepare_dataset(client, cases, READING, FINE, root)
    assert (done.computed, done.failures, done.done) == (1, (), keys)
    for key in keys.values():
        assert np.asarray(store.open(key).image, np.float32).std() > 0
    figure("out of memory: the case is named, those beside it are done; then done by a worker with more memory")


@pytest.mark.fault("compute/worker")
def test_a_case_too_large_for_its_share_of_this_machine_s_memory_has_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    monkeypatch.setattr("tasks.preprocess.cluster.MEMORY_LIMIT", 1_800_000_000)
    monkeypatch.setattr("tasks.preprocess.cluster.PROCESS_BYTES", 900_000_000)
    volumes, root = tmp_path / "volumes", tmp_path / "prepared"
    cases = [*write_cohort(volumes, 5), large_case(volumes)]
    with compute_client("", 2) as client:
        shares = [worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()]
        done = prepare_dataset(client, cases, READING, FINE, root)
    assert shares == [900_000_000] * 2
    assert (done.computed, done.failures) == (6, ())
    figure("too large for its share of this machine's memory: done alone, with all of it")
