"""From a plan and prepared cases to a model package."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from models.dataset import Dataset, DatasetRow
from models.errors import NothingToDoError
from models.package import Environment, Member, ModelPackage, TrainingRecord
from models.plan import Fingerprint, Plan
from models.recipe import Recipe
from tasks.imaging.device import choose_device
from tasks.stores.packages import write_package, write_weights
from tasks.train.folds import shared_out, summed_up
from tasks.train.learning import Job, Learnt, PreparedKeys, learn, learn_abreast, places
from tasks.train.loop import TERMINATED, Listener, Termination
from tasks.train.patches import Cases, Opener
from tasks.train.teaching import teaching_for
from tasks.train.transfer.course import Origin
from tasks.train.transfer.pretraining import pretrain

_CHECKPOINTS = "checkpoints"


def train(
    plan: Plan,
    recipe: Recipe,
    dataset: Dataset,
    prepared: Opener,
    prepared_keys: PreparedKeys,
    workspace: Path,
    *,
    staged: Path,
    key: str,
    code: str = "unknown",
    fingerprint: Fingerprint | None = None,
    origin: Origin | None = None,
    unlabelled: Sequence[str] = (),
    on_event: Listener | None = None,
    cancel: threading.Event | None = None,
) -> ModelPackage:
    """Train on the training split and write `weights.safetensors` and `package.json` into `staged`.

    With folds the networks learn one after the other, or one on each GPU, and the package holds them all. `workspace`
    keeps the checkpoints (`discard_checkpoints` once the package is published); called again after a kill, it goes on
    from the newest, and what has learnt does not learn again. `key` is the package's content key. `origin` is what it
    starts from, where the plan names weights or a champion; where the plan asks for pretraining, the prepared cases
    `unlabelled` are seen besides the training cases. Setting `cancel`, or
    SIGTERM in the main thread, saves a checkpoint and raises SystemExit(143). Raises NothingToDoError without a
    training case, RecipeError, TrainingError, MemoryExhaustedError.
    """
    rows, judged = (_ready(dataset.split(side), prepared_keys) for side in ("train", "validation"))
    if not rows:
        raise NothingToDoError("the dataset has no training case", where=dataset.name, hint="ingest labelled studies")
    abreast, termination = places(plan.train.device), Termination(cancel)
    if plan.train.start.source == "pretraining":
        images = Cases(prepared, [*(prepared_keys[row.volume, row.label] for row in rows), *unlabelled])
        origin = pretrain(plan, images, choose_device(plan.train.device), workspace / _CHECKPOINTS, key, termination)
    jobs = [
        Job(share, prepared, prepared_keys, workspace / _CHECKPOINTS / share.name, key, origin)
        for share in shared_out(plan, rows, judged, abreast)
    ]
    if abreast > 1 and len(jobs) > 1:
        learn_abreast(jobs, abreast, termination)
    learnt = [learn(job, termination, on_event) for job in jobs]
    with termination.listening(), _leaving():
        trained = [one.trained for one in learnt if one.trained is not None]
        choices = teaching_for(plan).choose(recipe, trained, termination)
    staged.mkdir(parents=True, exist_ok=True)
    course = learnt[0].course
    course.write(staged)
    package = ModelPackage(
        key=key,
        recipe=recipe,
        plan=plan,
        dataset=dataset.key,
        weights_sha256=write_weights(staged, _weights(learnt)),
        training=_record(learnt, choices.notes),
        environment=_environment(code),
        threshold=choices.threshold,
        thresholds=choices.thresholds,
        keep_largest=choices.keep_largest,
        temperature=choices.temperature,
        started_from=course.key,
        members=tuple(Member(name=one.name) for one in learnt if one.name),
        fingerprint=fingerprint.model_dump(mode="json") if fingerprint else {},
    )
    write_package(staged, package)
    return package


@contextmanager
def _leaving() -> Iterator[None]:
    """The last checkpoint says that training is over: called again, only what is chosen afterwards is chosen anew."""
    try:
        yield
    except InterruptedError:
        raise SystemExit(TERMINATED) from None


def discard_checkpoints(workspace: Path) -> None:
    """Remove the checkpoints of a training whose package is published."""
    shutil.rmtree(workspace / _CHECKPOINTS, ignore_errors=True)


def _ready(rows: Sequence[DatasetRow], keys: PreparedKeys) -> tuple[DatasetRow, ...]:
    """Without the cases that could not be prepared: they are in quarantine, with their reasons."""
    return tuple(row for row in rows if (row.volume, row.label) in keys)


def _weights(learnt: Sequence[Learnt]) -> dict[str, Tensor]:
    """Of all networks; those of folds bear the fold's name."""
    return {
        (f"{one.name}.{name}" if one.name else name): tensor
        for one in learnt
        for name, tensor in one.network.state_dict().items()
    }


def _record(learnt: Sequence[Learnt], more: tuple[str, ...]) -> TrainingRecord:
    if len(learnt) == 1:
        record = learnt[0].record
    else:
        metric = next((one.validation.name for one in learnt if one.validation), "")
        record = summed_up({one.name: one.record for one in learnt}, metric)
    return record.model_copy(update={"notes": (*record.notes, *more)})


def _environment(code: str) -> Environment:
    try:
        version = importlib.metadata.version("nocturne")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return Environment(
        nocturne=version,
        code=code,
        python=platform.python_version(),
        torch=torch.__version__,
        platform=platform.platform(terse=True),
    )
