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
from tasks.train.cascade import FULL
from tasks.train.folds import shared_out, summed_up
from tasks.train.learning import Learnt, PreparedKeys, places
from tasks.train.loop import TERMINATED, Listener, Termination
from tasks.train.patches import Cases, Opener
from tasks.train.school import School
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
    low_keys: PreparedKeys | None = None,
    on_event: Listener | None = None,
    cancel: threading.Event | None = None,
) -> ModelPackage:
    """Train on the training split and write `weights.safetensors` and `package.json` into `staged`.

    With folds the networks learn one after the other, or one on each GPU, and the package holds them all. `workspace`
    keeps the checkpoints (`discard_checkpoints` once the package is published); called again after a kill, it goes on
    from the newest, and what has learnt does not learn again. `key` is the package's content key. `origin` is what it
    starts from, where the plan names weights or a champion; where the plan asks for pretraining, the prepared cases
    `unlabelled` are seen besides the training cases. A cascade's first stage learns from the prepared cases `low_keys`.
    Setting `cancel`, or SIGTERM in the main thread, saves a checkpoint and raises SystemExit(143). Raises
    NothingToDoError without a training case, RecipeError, TrainingError, MemoryExhaustedError.
    """
    ready = prepared_keys if low_keys is None else {c: k for c, k in prepared_keys.items() if c in low_keys}
    rows, judged = (_ready(dataset.split(side), ready) for side in ("train", "validation"))
    if not rows:
        raise NothingToDoError("the dataset has no training case", where=dataset.name, hint="ingest labelled studies")
    abreast, termination = places(plan.train.device), Termination(cancel)
    if plan.train.start.source == "pretraining":
        images = Cases(prepared, [*(prepared_keys[row.volume, row.label] for row in rows), *unlabelled])
        origin = pretrain(plan, images, choose_device(plan.train.device), workspace / _CHECKPOINTS, key, termination)
    school = School(workspace / _CHECKPOINTS, key, origin, abreast, termination, on_event)
    low: list[Learnt] = []
    if plan.low is not None:
        low, prepared = school.first_stage(plan, rows, judged, prepared, prepared_keys, low_keys)
    learnt = school.learn(shared_out(plan, rows, judged, abreast), prepared, prepared_keys)
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
        weights_sha256=write_weights(staged, _weights(learnt, low)),
        training=_with_first_stage(_record(learnt, choices.notes), low),
        environment=_environment(code),
        threshold=choices.threshold,
        thresholds=choices.thresholds,
        keep_largest=choices.keep_largest,
        temperature=choices.temperature,
        started_from=course.key,
        members=_members(learnt, low, plan),
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


def _weights(learnt: Sequence[Learnt], low: Sequence[Learnt]) -> dict[str, Tensor]:
    """Of all networks; where there are several they bear their names."""
    return {
        (f"{name}.{tensor}" if name else tensor): value
        for name, one in [*((_name(one, low), one) for one in learnt), *((one.name, one) for one in low)]
        for tensor, value in one.network.state_dict().items()
    }


def _name(one: Learnt, low: Sequence[Learnt]) -> str:
    return one.name or (FULL if low else "")


def _members(learnt: Sequence[Learnt], low: Sequence[Learnt], plan: Plan) -> tuple[Member, ...]:
    """None for a single network; those that answer before those that tell them."""
    told = tuple(one.name for one in low)
    answering = (Member(name=_name(one, low), low=told) for one in learnt if _name(one, low))
    return (*answering, *(Member(name=one.name, plan=plan.low) for one in low))


def _with_first_stage(record: TrainingRecord, low: Sequence[Learnt]) -> TrainingRecord:
    if not low:
        return record
    first = _record(low, ())
    return record.model_copy(
        update={
            "low": first,
            "steps": record.steps + first.steps,
            "seconds": record.seconds + first.seconds,
            "parameters": record.parameters + first.parameters,
            "notes": (*(f"low resolution: {note}" for note in first.notes), *record.notes),
        }
    )


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
