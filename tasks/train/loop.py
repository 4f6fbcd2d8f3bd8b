"""The training loop: steps until the budget is spent, validations and checkpoints on the way.

Killed at any point, it goes on from its last checkpoint; what a step does depends on nothing but the step's number,
the weights and the optimiser, so with a budget in epochs the result is the same, bit for bit.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Protocol

from torch import nn

from models.errors import MemoryExhaustedError, TrainingError
from models.plan import TrainPlan
from tasks.imaging.device import Precision, is_out_of_memory, memory_told
from tasks.imaging.heap import kept_memory
from tasks.progress import Stage, stage
from tasks.train.checkpoint import Checkpoints
from tasks.train.execution import reproducible
from tasks.train.learner import Learner, Position
from tasks.train.patches import Batch, Prefetcher, Sampler

TERMINATED = 143  # 128 + SIGTERM, as shells report it
_NOT_FINITE_LIMIT = 10
_VALIDATION_SHARE = 0.2  # of the time, at most, where minutes are the budget
_log = logging.getLogger(__name__)


class Validation(Protocol):
    """Judges a network on the validation split."""

    @property
    def name(self) -> str:
        """The metric's name."""
        ...

    @property
    def decisive(self) -> bool:
        """Whether there are enough cases to choose weights by."""
        ...

    def __call__(self, network: nn.Module, precision: Precision, cancelled: Callable[[], bool]) -> float:
        """The metric, the higher the better. Raises InterruptedError once `cancelled`."""
        ...


@dataclass(frozen=True, slots=True)
class TrainEvent:
    """A validation took place (or, without validation cases, a part of the budget passed)."""

    step: int
    seconds: float
    loss: float
    metric: float | None
    learning_rate: float


Listener = Callable[[TrainEvent], None]


class Termination:
    """Whether somebody asked the training to stop: SIGTERM, or whoever holds `event`."""

    def __init__(self, event: threading.Event | None = None) -> None:
        self.event = event or threading.Event()

    def __call__(self) -> bool:
        return self.event.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM sets the event meanwhile. Signals reach the main thread only: elsewhere nothing is installed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._set)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.event.set()


def fit(
    learner: Learner,
    sampler: Sampler,
    validation: Validation | None,
    checkpoints: Checkpoints,
    *,
    on_event: Listener | None = None,
    termination: Termination | None = None,
) -> None:
    """Train `learner` until its budget is spent or patience is out, from the newest checkpoint if there is one.

    Raises TrainingError when the loss stays not finite, MemoryExhaustedError when a batch of 1 does not fit, and
    SystemExit(143) on SIGTERM, after a checkpoint.
    """
    stop = termination or Termination()
    with reproducible(learner.device), kept_memory(learner.device.type), stop.listening():
        _take_up(learner, checkpoints)
        loop = _Loop(learner, sampler, validation, checkpoints, on_event, stop)
        with stage("train", loop.budget.total, loop.budget.unit) as running:
            running.advance(loop.budget.spent(learner.position))
            loop.run(running)


def _take_up(learner: Learner, checkpoints: Checkpoints) -> None:
    crew = learner.crew
    found, damaged = checkpoints.newest() if crew.leads else (None, 0)
    found, damaged = crew.told_checkpoint(found), crew.told(damaged)
    if found is not None:
        learner.restore(found)
        learner.position.notes.append(f"resumed at step {found.step}")
    most = crew.told(crew.most)
    while most is not None and learner.position.batch_size > most and learner.halve():
        _log.warning(learner.position.notes[-1])
    if damaged:
        note = f"{damaged} damaged checkpoint(s) passed over"
        learner.position.notes.append(note)
        _log.warning("%s, going on from step %d", note, learner.position.step)
    if learner.position.stopped_by is None:
        learner.position.processes = crew.size


@dataclass(frozen=True, slots=True)
class Budget:
    """Epochs, minutes, or both: the first that is reached ends it."""

    plan: TrainPlan

    @property
    def steps(self) -> int | None:
        """All steps, where the budget is in epochs."""
        return None if self.plan.epochs is None else self.plan.epochs * self.plan.steps_per_epoch

    @property
    def total(self) -> float:
        """For the progress bar: steps where epochs are given (minutes are then but a bound), else seconds."""
        return float(self.steps) if self.steps is not None else self._seconds

    @property
    def unit(self) -> str:
        """Of `total`."""
        return "s" if self.steps is None else "steps"

    def spent(self, position: Position) -> float:
        """Of `total`."""
        return min(position.seconds if self.steps is None else float(position.step), self.total)

    def progress(self, position: Position) -> float:
        """Share that is spent, 0–1."""
        return min(1.0, max(self._by_steps(position), self._by_time(position)))

    def ended_by(self, position: Position) -> str | None:
        """What is used up, if anything."""
        if self._by_steps(position) >= 1:
            return "epochs"
        return "minutes" if self._by_time(position) >= 1 else None

    def _by_steps(self, position: Position) -> float:
        return position.step / self.steps if self.steps else 0.0

    def _by_time(self, position: Position) -> float:
        if self.plan.minutes is None:
            return 0.0
        # The last validation belongs to the budget too: it will take as long as the one before.
        reserve = position.history[-1][3] if position.history else 0.0
        return position.seconds / (self._seconds - min(reserve, self._seconds / 2))

    @property
    def _seconds(self) -> float:
        return 60 * (self.plan.minutes or 0.0)


class _Loop:
    def __init__(
        self,
        learner: Learner,
        sampler: Sampler,
        validation: Validation | None,
        checkpoints: Checkpoints,
        on_event: Listener | None,
        stop: Termination,
    ) -> None:
        self.learner, self.sampler, self.validation, self.checkpoints = learner, sampler, validation, checkpoints
        self.on_event, self.stop, self.crew = on_event, stop, learner.crew
        self.plan = learner.plan.train
        self.budget = Budget(self.plan)
        self.speed = 0.0  # steps a second, smoothed

    @property
    def position(self) -> Position:
        return self.learner.position

    def run(self, running: Stage) -> None:
        """Steps and validations until something ends it, then a last checkpoint."""
        while self.position.stopped_by is None:
            pin = self.learner.device.type == "cuda"
            with Prefetcher(self.sampler, self.position.step, self.position.batch_size, pin=pin) as batches:
                size = self.position.batch_size
                # A halved batch needs a new prefetcher; everything else goes on in this one.
                while self.position.stopped_by is None and self.position.batch_size == size:
                    self._turn(batches, running)
        self._save()

    def _turn(self, batches: Prefetcher, running: Stage) -> None:
        """One step with what is due around it, on the training's clock."""
        begun, before = time.monotonic(), self.budget.spent(self.position)
        stop, self.position.seconds = self.crew.agree(self.stop(), self.position.seconds)
        if stop:
            self._leave()
        position, ended = self.position, self.budget.ended_by(self.position)
        if ended or self._validation_due():
            self._pause(begun, ended)
        else:
            batch = batches.next()
            position.waited += time.monotonic() - begun
            self._step(batch)
            elapsed = time.monotonic() - begun
            position.seconds += elapsed
            self.speed = 0.95 * self.speed + 0.05 / elapsed if self.speed else 1 / elapsed
        running.advance(self.budget.spent(self.position) - before, self._note())
        if time.monotonic() - self.checkpoints.saved_at >= self.plan.checkpoint_minutes * 60:
            self._save()

    def _pause(self, begun: float, ended: str | None) -> None:
        """The leader validates, where that has not been done at this step, and says how it goes on."""
        position, left = self.position, False
        if self.crew.leads:
            try:
                if not position.history or position.history[-1][0] < position.step:
                    self._validate(begun)
            except InterruptedError:
                left = True  # the checkpoint stands before this validation, which the resumed run then does
            position.stopped_by = position.stopped_by or ended
            position.seconds += time.monotonic() - begun
        told = self.crew.told(None if left else asdict(position))
        if told is None:
            self._leave()
        self.learner.position = Position(**told)

    def _step(self, batch: Batch) -> None:
        position = self.position
        try:
            self.learner.settle(batch)
            loss = self.learner.step(batch, self.budget.progress(position))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            loss, short = None, True
        else:
            short = False
        if short:
            self._make_do()
        elif loss is None:
            self._skip()
        else:
            position.not_finite = 0
            position.loss_sum += loss
            position.loss_count += 1

    def _make_do(self) -> None:
        if not self.learner.halve():
            raise MemoryExhaustedError(
                "not even a batch of one fits into memory",
                where="train",
                hint="choose a smaller patch_size or fewer features, or free memory",
            )
        _log.warning(self.position.notes[-1])

    def _skip(self) -> None:
        self.position.not_finite += 1
        _log.warning("step %d skipped: its loss or gradient is not finite", self.position.step)
        if self.position.not_finite >= _NOT_FINITE_LIMIT:
            raise TrainingError(
                f"the loss was not finite {_NOT_FINITE_LIMIT} times in a row, last at step {self.position.step}",
                where="train",
                hint='lower learning_rate, or set precision = "fp32"',
                reason="loss-not-finite",
            )

    def _validation_due(self) -> bool:
        position = self.position
        if position.validated >= math.floor(self.budget.progress(position) * self.plan.validations):
            return False
        if self.plan.minutes is None or not position.history:
            return True
        # Validations that take long become rarer, so that training keeps its share of the time.
        cost = position.history[-1][3]
        return position.seconds - position.validated_at >= cost / _VALIDATION_SHARE

    def _validate(self, begun: float) -> None:
        position = self.position
        progress = self.budget.progress(position)
        metric = self._metric()
        # Without a finite loss since the last time, the last one still stands.
        last = position.history[-1][1] if position.history else 0.0
        loss = position.loss_sum / position.loss_count if position.loss_count else last
        cost = time.monotonic() - begun
        position.history.append([position.step, loss, metric or 0.0, cost])
        position.validated = math.floor(progress * self.plan.validations)
        position.validated_at = position.seconds + cost
        position.loss_sum, position.loss_count = 0.0, 0
        if metric is not None:
            self._weigh(metric)
        if self.on_event is not None:
            learning_rate = float(self.learner.optimiser.param_groups[0]["lr"])
            self.on_event(TrainEvent(position.step, position.validated_at, loss, metric, learning_rate))

    def _metric(self) -> float | None:
        if self.validation is None:
            return None
        precision: Precision = self.learner.execution.precision if self.learner.execution else "auto"
        with memory_told("validation"):
            return self.validation(self.learner.average, precision, self.stop)

    def _weigh(self, metric: float) -> None:
        position = self.position
        if self.validation is not None and not self.validation.decisive:
            self.learner.keep_as_best(metric)  # the last weights: the best of a few cases is a lucky moment
            return
        if position.best_metric is None or metric > position.best_metric:
            self.learner.keep_as_best(metric)
            position.without_progress = 0
            return
        position.without_progress += 1
        if self.plan.patience is not None and position.without_progress >= self.plan.patience:
            position.stopped_by = "patience"

    def _note(self) -> str:
        position = self.position
        parts = []
        if position.loss_count:
            parts.append(f"loss {position.loss_sum / position.loss_count:.3f}")
        elif position.history:
            parts.append(f"loss {position.history[-1][1]:.3f}")
        if self.validation is not None and position.history:
            parts.append(f"{self.validation.name} {position.history[-1][2]:.3f}")
        return " · ".join([*parts, f"{self.speed:.1f} steps/s"])

    def _save(self) -> None:
        if self.crew.leads:
            self.checkpoints.save(self.learner.checkpoint())

    def _leave(self) -> None:
        self._save()
        _log.warning("asked to stop: saved at step %d", self.position.step)
        raise SystemExit(TERMINATED)
