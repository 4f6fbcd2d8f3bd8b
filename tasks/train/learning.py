"""One network's learning from start to end; and several at once, one process on each GPU."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from models.dataset import DatasetRow
from models.package import TrainingRecord
from models.plan import Plan
from tasks.imaging.device import Precision, choose_device
from tasks.stores.locks import held
from tasks.train.checkpoint import Checkpoints
from tasks.train.crew import ALONE, Crew
from tasks.train.folds import Share
from tasks.train.learner import Learner
from tasks.train.loop import TERMINATED, Listener, Termination, Validation, fit
from tasks.train.patches import Cases, Opener
from tasks.train.teaching import Trained, teaching_for
from tasks.train.transfer.course import Course, Origin, chart, replayed

PreparedKeys = Mapping[tuple[str, str], str]
"""(volume, label) → the prepared case's key."""
_LOOK_SECONDS = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """All that one network's learning takes; may be handed to another process.

    `workspace` keeps the checkpoints of this network alone, `key` tells them from those of another training. It starts
    from `origin`, or from scratch.
    """

    share: Share
    prepared: Opener
    keys: PreparedKeys
    workspace: Path
    key: str
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Learnt:
    """A network that has learnt. `validation` is None where no case judges it."""

    name: str
    network: nn.Module
    precision: Precision
    validation: Validation | None
    record: TrainingRecord
    course: Course

    @property
    def trained(self) -> Trained | None:
        """With what judges it, if anything does."""
        return Trained(self.network, self.precision, self.validation) if self.validation else None


def learn(job: Job, termination: Termination, on_event: Listener | None = None) -> Learnt:
    """Train until the budget is spent, from the newest checkpoint; one that is over is only read.

    Raises what `fit` raises.
    """
    learner, course, validation = taught(job, termination, on_event)
    record = _record(learner, course.notes, validated=validation is not None)
    return Learnt(job.share.name, learner.final(), learner.precision, validation, record, course)


def taught(
    job: Job, termination: Termination, on_event: Listener | None = None, crew: Crew = ALONE
) -> tuple[Learner, Course, Validation | None]:
    """What has learnt, by which course, and what judged it: in this process, which may be one of a `crew`."""
    share, course = job.share, _course(job)
    plan = course.plan
    device = choose_device(plan.train.device)
    teaching = teaching_for(plan)
    known = job.origin.known if course.match and job.origin else frozenset()
    cases = _cases(job, share.learnt, replayed(share.learnt, known, plan.train.start.replay))
    judged = _cases(job, share.judged)
    validation = teaching.validation(judged, share.judged, device) if share.judged else None
    with _alone(job.workspace) if crew.leads else nullcontext():
        learner = course.begin(teaching.learner(device))
        learner.crew = crew
        sampler = teaching.sampler(cases, share.learnt)
        fit(learner, sampler, validation, _checkpoints(job, plan), on_event=on_event, termination=termination)
    return learner, course, validation


def learnt_already(job: Job) -> bool:
    """Whether its newest checkpoint says that training is over."""
    found, _ = _checkpoints(job, _course(job).plan).newest()
    return found is not None and found.values["position"]["stopped_by"] is not None


def _course(job: Job) -> Course:
    return chart(job.share.plan, job.origin.of(job.share.name) if job.origin else None)


def _checkpoints(job: Job, plan: Plan) -> Checkpoints:
    return Checkpoints(job.workspace, f"{job.key}.{plan.key}")


def places(wanted: Literal["auto", "cpu", "cuda"]) -> int:
    """How many networks can learn at the same time: as many as there are GPUs, one on a CPU."""
    return torch.cuda.device_count() if choose_device(wanted).type == "cuda" else 1


def learn_abreast(jobs: Sequence[Job], abreast: int, termination: Termination) -> None:
    """Carry out the jobs in processes, one on each of `abreast` GPUs; what they learn lies in their checkpoints.

    A process that fails leaves its job to whoever calls `learn` for it afterwards, who then sees why. Raises
    SystemExit(143) once asked to stop, after every process has saved where it stands.
    """
    context = multiprocessing.get_context("spawn")
    waiting, free = list(jobs), list(range(abreast))
    running: dict[BaseProcess, int] = {}
    with termination.listening():
        while waiting or running:
            if termination():
                _stop(running)
                raise SystemExit(TERMINATED)
            while waiting and free:
                place = free.pop(0)
                process: BaseProcess = context.Process(target=_learn_apart, args=(waiting.pop(0), place), daemon=True)
                process.start()
                running[process] = place
            wait([process.sentinel for process in running], _LOOK_SECONDS)
            for ended in [one for one in running if one.exitcode is not None]:
                if ended.exitcode:
                    _log.warning("a fold's process ended with %s; it is taken up again here", ended.exitcode)
                free.append(running.pop(ended))


def _stop(running: Mapping[BaseProcess, int]) -> None:
    for process in running:
        process.terminate()
    for process in running:
        process.join()


def _learn_apart(job: Job, place: int) -> None:
    """In a process of its own. It stops, after a checkpoint, when the process that started it has ended."""
    if torch.cuda.is_available():
        torch.cuda.set_device(place)
    event, parent = threading.Event(), parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        event.set()

    threading.Thread(target=follow, daemon=True).start()
    learn(job, Termination(event))


@contextmanager
def _alone(workspace: Path) -> Iterator[None]:
    """Wait until no other process learns here: one that its parent's end stops still saves where it stands."""
    with held(workspace / "lock"):
        yield


def _cases(job: Job, rows: Sequence[DatasetRow], shares: Sequence[float] | None = None) -> Cases:
    return Cases(job.prepared, [job.keys[row.volume, row.label] for row in rows], shares)


def _record(learner: Learner, before: tuple[str, ...], *, validated: bool) -> TrainingRecord:
    position = learner.position
    notes = [] if validated else ["no validation case: the last weights were taken, unjudged"]
    if position.seconds > 0:
        notes.append(f"waited for patches for {position.waited / position.seconds:.1%} of the time")
    return TrainingRecord(
        steps=position.step,
        epochs=position.step // learner.plan.train.steps_per_epoch,
        seconds=position.seconds,
        stopped_by=cast(Literal["epochs", "minutes", "patience"], position.stopped_by),
        device=_device_name(learner.device),
        precision=learner.precision,
        batch_size=position.batch_size,
        processes=position.processes,
        parameters=learner.parameters,
        best_metric=position.best_metric or 0.0,
        best_step=position.best_step if validated else position.step,
        history=tuple((int(s), loss, metric) for s, loss, metric, _ in position.history) if validated else (),
        notes=(*before, *position.notes, *notes),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
