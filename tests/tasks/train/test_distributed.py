"""Several processes learn what one learns, and a killed one costs nothing but time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import psutil
import pytest
import torch

from models.errors import RecipeError
from models.geometry import Geometry
from tasks.stores.prepared import About, PreparedStore
from tasks.train.cascade import ToldStore
from tasks.train.checkpoint import Checkpoint, Checkpoints
from tasks.train.crew import ALONE, Crew
from tasks.train.distributed import described, learn_jointly, processes_for, read_job
from tasks.train.folds import Share
from tasks.train.joint import Joint
from tasks.train.learning import Job, learn, learnt_already
from tasks.train.loop import Termination, TrainEvent
from tasks.train.patches import Cases, PatchSampler
from tasks.train.transfer.course import Origin
from tests.tasks.train.samples import World, balls

KILLER = """
import os, signal
if os.environ.get("RANK") == "1" and not os.path.exists({marker!r}):
    from tasks.train.learner import Learner
    step = Learner.step
    def dying(self, batch, progress):
        if self.position.step == 7:
            open({marker!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, progress)
    Learner.step = dying
"""
"""What a process reads when it starts."""


def world(**changes: object) -> World:
    """An uneven batch, without dropout, which each process draws for itself.

    AdamW's first steps would make a whole rate's difference of a rounding error's.
    """
    given = {"epochs": 2, "batch_size": 3, "optimiser": "sgd", "learning_rate": 0.01, "checkpoint_minutes": 1e-9}
    made = balls(**(given | changes))
    network = made.plan.network.model_copy(update={"dropout": 0.0})
    return dataclasses.replace(made, plan=made.plan.model_copy(update={"network": network}))


def job_of(world: World, folder: Path, name: str) -> Job:
    """With the cases where other processes find them."""
    store = PreparedStore(folder / "prepared")
    for key, case in world.store.cases.items():
        assert case.mask is not None
        place = Geometry.from_spacing(case.mask.shape, (1.0, 1.0, 1.0))
        store.write(key, case.image, case.mask, About(key, place, place, tuple((0, n) for n in case.mask.shape)))  # type: ignore[arg-type]
    share = Share("", world.plan, world.dataset.split("train"), world.dataset.split("validation"))
    return Job(share, store, world.keys, folder / name, "key")


def newest(job: Job) -> Checkpoint:
    found, _ = Checkpoints(job.workspace, f"{job.key}.{job.share.plan.key}").newest()
    assert found is not None, (job.workspace / "joint" / "log.txt").read_text()[-4000:]
    return found


def farthest(first: Checkpoint, second: Checkpoint) -> float:
    return max(
        float((tensor.double() - second.tensors[name].double()).abs().max())
        for name, tensor in first.tensors.items()
        if name.startswith(("network:", "average:", "best:", "optimiser:"))
    )


@pytest.fixture(scope="module")
def jointly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, list[TrainEvent]]:
    """What two processes have learnt."""
    events: list[TrainEvent] = []
    job = job_of(world(), tmp_path_factory.mktemp("jointly"), "two")
    learn_jointly(job, 2, Termination(), events.append)
    return job, events


class TestShares:
    @pytest.mark.parametrize(("count", "size"), [(2, 2), (5, 2), (5, 3), (8, 8)])
    def test_the_parts_are_the_batch_and_none_is_seen_twice(self, count: int, size: int) -> None:
        cases = balls().store
        sampler = PatchSampler(Cases(cases, list(cases.cases)), (8, 16, 16), 0.33, 3)
        for step in range(3):
            batch = sampler.batch(step, count)
            parts = [Crew(rank, size).own(torch.arange(count)) for rank in range(size)]
            assert sorted(int(i) for part in parts for i in part) == list(range(count))
            for rank, part in enumerate(parts):
                assert torch.equal(Crew(rank, size).own(batch.images), batch.images[part])

    def test_one_process_has_all_of_it(self) -> None:
        batch = torch.rand(3, 2)
        assert ALONE.own(batch) is batch

    def test_more_processes_than_elements_are_refused_with_what_to_write(self) -> None:
        with pytest.raises(RecipeError, match="batch of 2"):
            Joint(0, 3).check(2)

    def test_how_many_learn_together(self) -> None:
        plan = balls().plan
        assert [processes_for(plan, wanted) for wanted in (0, 1, 2, 8)] == [1, 1, 2, 2]
        assert processes_for(plan.model_copy(update={"kind": "synthesis"}), 2) == 1


def test_two_processes_learn_what_one_learns(jointly: tuple[Job, list[TrainEvent]], tmp_path: Path) -> None:
    two, events = jointly
    one = job_of(world(), tmp_path, "one")
    alone = learn(one, Termination())
    assert newest(two).values["position"]["processes"] == 2
    assert newest(one).values["position"]["processes"] == 1
    assert farthest(newest(one), newest(two)) < 1e-5
    assert [event.step for event in events] == [step for step, _, _ in alone.record.history]
    assert events[-1].metric == pytest.approx(alone.record.history[-1][2], abs=1e-3)


def test_a_killed_process_is_started_again_and_the_weights_are_the_same(
    jointly: tuple[Job, list[TrainEvent]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, marker = job_of(world(), tmp_path, "killed"), tmp_path / "killed-once"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER.format(marker=str(marker)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    learn_jointly(killed, 2, Termination())
    assert marker.exists()
    found = newest(killed)
    assert learnt_already(killed)
    assert found.values["position"]["processes"] == 2
    assert "resumed at step 7" in found.values["position"]["notes"]
    assert farthest(newest(jointly[0]), found) == 0


def listening(before: set[psutil.Process]) -> set[str]:
    """Where the processes listen that this one has started since; a session's PACS is its child too."""
    return {
        connection.laddr.ip
        for process in set(psutil.Process().children(recursive=True)) - before
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.fault("access/loopback")
def test_asked_to_stop_they_save_where_they_stand_and_they_listened_on_loopback_alone(tmp_path: Path) -> None:
    job = job_of(world(epochs=100_000, validations=50_000, checkpoint_minutes=60.0), tmp_path, "stopped")
    termination, places = Termination(), set()
    before = set(psutil.Process().children(recursive=True))

    def look(event: TrainEvent) -> None:
        places.update(listening(before))
        termination.event.set()

    learn_jointly(job, 2, termination, look)
    assert "127.0.0.1" in places <= {"127.0.0.1", "::1"}
    stood = newest(job)  # there is none but what was saved on leaving
    assert stood.values["position"]["stopped_by"] is None
    assert stood.step >= 10
    with pytest.raises(SystemExit, match="143"):
        learn(job, termination)


def test_a_job_comes_back_from_its_file(tmp_path: Path) -> None:
    job = job_of(balls(), tmp_path, "work")
    weights = {"a": torch.rand(2, 3)}
    told = ToldStore(job.prepared, tmp_path / "told")
    job = dataclasses.replace(
        job, prepared=told, origin=Origin(weights, "key", "in words", frozenset({("v", "l")}), ("0", "1"))
    )
    again = read_job(described(job, tmp_path / "joint"))
    assert (again.share, again.keys, again.key, again.workspace) == (job.share, job.keys, job.key, job.workspace)
    assert isinstance(again.prepared, ToldStore)
    assert again.prepared.folder == told.folder
    assert again.origin is not None
    assert job.origin is not None
    assert torch.equal(again.origin.weights["a"], weights["a"])
    assert dataclasses.replace(again.origin, weights={}) == dataclasses.replace(job.origin, weights={})


def test_cases_in_memory_cannot_be_given_to_another_process(tmp_path: Path) -> None:
    job = dataclasses.replace(job_of(balls(), tmp_path, "work"), prepared=balls().store)
    with pytest.raises(TypeError, match="MemoryStore"):
        described(job, tmp_path)
