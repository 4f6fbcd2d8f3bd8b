"""The loop: the same seed gives the same bits, also across a kill; and what it does when something is wrong."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from models.errors import MemoryExhaustedError, TrainingError
from models.package import WEIGHTS_FILE
from models.plan import TrainPlan
from tasks.imaging.device import Precision
from tasks.stores.packages import digest
from tasks.train import learner as learning
from tasks.train.checkpoint import Checkpoints
from tasks.train.learner import Learner, rate
from tasks.train.loop import Budget, Termination, TrainEvent, fit
from tasks.train.patches import Batch, Cases, PatchSampler
from tasks.train.run import train
from tests.tasks.train.samples import World, balls, pictures, train_plan

CPU = torch.device("cpu")


class Judge:
    """A validation that answers from a list."""

    name = "dice"

    def __init__(self, *answers: float, decisive: bool = True) -> None:
        self.answers, self.decisive = list(answers), decisive

    def __call__(self, network: nn.Module, precision: Precision, cancelled: Callable[[], bool]) -> float:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def run(
    world: World, folder: Path, judge: Judge | None = None, *, termination: Termination | None = None
) -> tuple[Learner, list[TrainEvent]]:
    plan = world.plan
    cases = Cases(world.store, [r.volume for r in world.dataset.split("train")])
    sampler = PatchSampler(cases, plan.train.patch_size, plan.train.oversample_foreground, plan.seed)
    learner, events = Learner(plan, CPU), []
    fit(learner, sampler, judge, Checkpoints(folder, "test"), on_event=events.append, termination=termination)
    return learner, events


def weights(learner: Learner) -> dict[str, Tensor]:
    return learner.final().state_dict()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


class TestExactness:
    @pytest.mark.parametrize(("precision", "dimensions"), [("fp32", 3), ("auto", 2)])
    def test_two_runs_give_the_same_bits(self, tmp_path: Path, precision: str, dimensions: int) -> None:
        world = balls(precision=precision, dimensions=dimensions)
        first, _ = run(world, tmp_path / "a")
        second, _ = run(world, tmp_path / "b")
        assert equal(weights(first), weights(second))

    def test_another_seed_gives_others(self, tmp_path: Path) -> None:
        world = balls()
        other = World(world.plan.model_copy(update={"seed": 4}), world.recipe, world.dataset, world.store)
        assert not equal(weights(run(world, tmp_path / "a")[0]), weights(run(other, tmp_path / "b")[0]))

    @pytest.mark.parametrize("stopped_after", [1, 5, 7])
    @pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
    def test_an_interrupted_run_ends_as_an_uninterrupted_one(
        self, tmp_path: Path, optimiser: str, stopped_after: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = balls(optimiser=optimiser, validations=3)
        whole, whole_events = run(world, tmp_path / "whole", Judge(0.1, 0.3, 0.2))
        termination, step = Termination(), Learner.step

        def stopping(self: Learner, batch: Batch, progress: float) -> float | None:
            loss = step(self, batch, progress)
            if self.position.step == stopped_after:
                termination.event.set()
            return loss

        monkeypatch.setattr(Learner, "step", stopping)
        with pytest.raises(SystemExit, match="143"):
            run(world, tmp_path / "parts", Judge(0.1, 0.3, 0.2), termination=termination)
        monkeypatch.undo()
        torch.rand(7)  # whatever else drew in between
        judged = stopped_after > 10 / 3
        resumed, events = run(world, tmp_path / "parts", Judge(*((0.3, 0.2) if judged else (0.1, 0.3, 0.2))))
        assert resumed.position.step == whole.position.step == 10
        assert equal(weights(resumed), weights(whole))
        assert equal(resumed.network.state_dict(), whole.network.state_dict())
        assert [e.loss for e in events] == [e.loss for e in whole_events][-len(events) :]
        assert f"resumed at step {stopped_after}" in resumed.position.notes

    def test_a_damaged_newest_checkpoint_costs_only_the_steps_since(self, tmp_path: Path) -> None:
        world = balls(checkpoint_minutes=1e-9)
        whole, _ = run(world, tmp_path)
        newest = max(tmp_path.rglob("*.safetensors"))
        newest.write_bytes(newest.read_bytes()[:-5])
        again, _ = run(world, tmp_path)
        assert equal(weights(again), weights(whole))
        assert any("damaged" in note for note in again.position.notes)


SCRIPT = """
import sys
from pathlib import Path
from tests.tasks.train.samples import balls
from tasks.train.run import train
world = balls(epochs=int(sys.argv[2]), checkpoint_minutes=60.0)
folder = Path(sys.argv[1])
def told(event):
    print(event.step, flush=True)
    sys.stdin.readline()  # goes on when it is told to, or at once where nobody tells
train(world.plan, world.recipe, world.dataset, world.store, world.keys, folder, staged=folder / "package", key="k",
      on_event=told)
"""


def test_sigterm_saves_and_the_next_process_ends_with_the_same_package(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}

    def start(folder: str, stdin: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder), "8"]
        return subprocess.Popen(command, env=environment, cwd=root, stdin=stdin, stdout=subprocess.PIPE, text=True)

    killed = start("killed", subprocess.PIPE)
    assert killed.stdin is not None
    assert killed.stdout is not None
    assert killed.stdout.readline().strip() == "20"  # the first of two validations: it is training
    killed.send_signal(signal.SIGTERM)
    killed.stdin.close()
    assert killed.wait(300) == 143
    killed.stdout.close()
    assert list((tmp_path / "killed" / "checkpoints").rglob("*.json"))
    assert not (tmp_path / "killed" / "package").exists()
    resumed = start("killed", subprocess.DEVNULL)
    world, whole = balls(epochs=8), tmp_path / "whole"
    train(world.plan, world.recipe, world.dataset, world.store, world.keys, whole, staged=whole / "package", key="k")
    resumed.communicate(timeout=600)
    assert resumed.returncode == 0
    assert digest(tmp_path / "killed/package" / WEIGHTS_FILE) == digest(whole / "package" / WEIGHTS_FILE)


def test_the_previous_sigterm_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(balls(epochs=1), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_may_train_and_be_cancelled(tmp_path: Path) -> None:
    world, cancel, codes = balls(), threading.Event(), []
    cancel.set()

    def work() -> None:
        try:
            run(world, tmp_path, termination=Termination(cancel))
        except SystemExit as left:
            codes.append(left.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(300)
    assert codes == [143]


class TestTrouble:
    @pytest.mark.fault("compute/nan")
    def test_a_loss_that_stays_not_finite_ends_it_with_the_reason(self, tmp_path: Path) -> None:
        world = balls(epochs=10)
        for case in world.store.cases.values():
            case.image[:] = float("nan")
        with pytest.raises(TrainingError) as caught:
            run(world, tmp_path)
        assert caught.value.reason == "loss-not-finite"

    @pytest.mark.fault("compute/nan")
    def test_one_bad_step_is_skipped_and_leaves_the_weights_finite(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draw = PatchSampler.batch

        def sometimes_bad(self: PatchSampler, step: int, size: int) -> Batch:
            batch = draw(self, step, size)
            return Batch(batch.images * float("nan"), batch.targets) if step in (2, 3) else batch

        monkeypatch.setattr(PatchSampler, "batch", sometimes_bad)
        learner, _ = run(balls(), tmp_path)
        assert learner.position.step == 10
        assert all(torch.isfinite(t).all() for t in weights(learner).values())

    @staticmethod
    def _short_of_memory(monkeypatch: pytest.MonkeyPatch, above: int) -> None:
        step = Learner.step

        def failing(self: Learner, batch: Batch, progress: float) -> float | None:
            if len(batch.images) > above:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            return step(self, batch, progress)

        monkeypatch.setattr(Learner, "step", failing)

    @pytest.mark.fault("compute/cuda-memory")
    def test_out_of_memory_halves_the_batch_and_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._short_of_memory(monkeypatch, above=2)
        learner, _ = run(balls(batch_size=8), tmp_path)
        assert learner.position.batch_size == 2
        assert learner.position.step == 10
        assert sum("halved" in note for note in learner.position.notes) == 2

    def test_out_of_memory_with_a_batch_of_one_may_be_tried_again_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._short_of_memory(monkeypatch, above=0)
        with pytest.raises(MemoryExhaustedError):
            run(balls(), tmp_path)

    def test_validation_that_does_not_fit_may_be_tried_again_later(self, tmp_path: Path) -> None:
        class Large(Judge):
            def __call__(self, network: nn.Module, precision: Precision, cancelled: Callable[[], bool]) -> float:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

        with pytest.raises(MemoryExhaustedError):
            run(balls(), tmp_path, Large(0.0))

    def test_other_errors_pass(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(self: Learner, batch: Batch, progress: float) -> float | None:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr(Learner, "step", failing)
        with pytest.raises(RuntimeError, match="mat1"):
            run(balls(), tmp_path)


class TestValidation:
    def test_the_best_weights_are_kept(self, tmp_path: Path) -> None:
        learner, events = run(balls(validations=5), tmp_path, Judge(0.1, 0.9, 0.5))
        assert [e.metric for e in events] == [0.1, 0.9, 0.5, 0.5, 0.5]
        assert (learner.position.best_metric, learner.position.best_step) == (0.9, events[1].step)
        last = {n: t.clone() for n, t in learner.average.state_dict().items()}
        assert not equal(weights(learner), last)

    def test_a_few_validation_cases_do_not_choose_the_weights(self, tmp_path: Path) -> None:
        learner, events = run(balls(validations=5), tmp_path, Judge(0.1, 0.9, 0.5, decisive=False))
        assert (learner.position.best_metric, learner.position.best_step) == (0.5, events[-1].step)

    def test_patience_ends_it(self, tmp_path: Path) -> None:
        learner, events = run(balls(validations=10, patience=3), tmp_path, Judge(0.5, 0.4))
        assert learner.position.stopped_by == "patience"
        assert len(events) == 4

    def test_averaged_weights_lag_behind_and_no_decay_means_none(self, tmp_path: Path) -> None:
        averaged, _ = run(balls(), tmp_path / "a")
        assert not equal(averaged.average.state_dict(), averaged.network.state_dict())
        plain, _ = run(balls(ema=0.0), tmp_path / "b")
        assert equal(plain.average.state_dict(), plain.network.state_dict())

    def test_stopping_while_judging_leaves_the_judging_to_the_next_run(self, tmp_path: Path) -> None:
        termination = Termination()

        class Interrupted(Judge):
            def __call__(self, network: nn.Module, precision: Precision, cancelled: Callable[[], bool]) -> float:
                termination.event.set()
                raise InterruptedError

        with pytest.raises(SystemExit, match="143"):
            run(balls(validations=2), tmp_path, Interrupted(0.0), termination=termination)
        learner, events = run(balls(validations=2), tmp_path, Judge(0.2, 0.4))
        assert [(e.step, e.metric) for e in events] == [(5, 0.2), (10, 0.4)]
        assert learner.position.best_step == 10


class TestBudget:
    def test_minutes_end_it_and_count_over_all_parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = itertools.count()  # a clock of our own: another's may rest while it is read
        monkeypatch.setattr("tasks.train.loop.time", SimpleNamespace(monotonic=lambda: next(ticks) / 100))
        world = balls(minutes=0.03, epochs=None)
        learner, _ = run(world, tmp_path)
        assert learner.position.stopped_by == "minutes"
        assert learner.position.seconds > 1.7
        again, events = run(world, tmp_path)
        assert events == []
        assert again.position.step == learner.position.step

    def test_with_both_the_first_reached_ends_it(self, tmp_path: Path) -> None:
        learner, _ = run(balls(minutes=60.0, epochs=1), tmp_path)
        assert learner.position.stopped_by == "epochs"
        assert learner.position.step == 5

    def test_the_last_validation_is_part_of_the_minutes(self) -> None:
        position = learning.Position(batch_size=2, step=5, seconds=55.0, history=[[3, 0.1, 0.5, 6.0]])
        assert Budget(train_plan(minutes=1.0, epochs=None)).ended_by(position) == "minutes"

    def test_progress_is_the_larger_share(self) -> None:
        position = learning.Position(batch_size=2, step=5, seconds=45.0)
        assert Budget(train_plan(minutes=1.0)).progress(position) == 0.75
        assert Budget(train_plan(minutes=10.0)).progress(position) == 0.5


class TestRate:
    @pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
    def test_rises_then_follows_the_schedule(self, schedule: str) -> None:
        plan: TrainPlan = train_plan(schedule=schedule, warmup=0.1)
        assert 0 < rate(0.0, plan) < rate(0.05, plan) == 0.5 < rate(0.1, plan) == 1.0
        assert rate(1.0, plan) == (1.0 if schedule == "constant" else 0.0)
        falling = [rate(p / 100, plan) for p in range(10, 101)]
        assert falling == sorted(falling, reverse=True)

    def test_no_warm_up_starts_at_full_rate(self) -> None:
        assert rate(0.0, train_plan(warmup=0.0)) == 1.0


def test_timed_budgets_measure_and_say_what_was_chosen(tmp_path: Path) -> None:
    learner, _ = run(balls(minutes=0.03, epochs=None, precision="auto"), tmp_path)
    assert learner.execution is not None
    assert "a step took" in learner.position.notes[0]


@pytest.mark.parametrize("world", [balls(dimensions=2), pictures()], ids=["slices", "pictures"])
def test_two_dimensional_networks_see_single_slices(world: World, tmp_path: Path) -> None:
    package = train(
        world.plan, world.recipe, world.dataset, world.store, world.keys, tmp_path, staged=tmp_path / "p", key="k"
    )
    assert package.training.steps == 10
