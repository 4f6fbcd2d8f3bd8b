"""From a plan and prepared cases to a model package."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch

from models.dataset import Dataset, DatasetRow
from models.errors import NothingToDoError
from models.package import Environment, ModelPackage, TrainingRecord
from models.plan import Fingerprint, Plan
from models.recipe import Recipe
from tasks.imaging.device import choose_device
from tasks.stores.packages import write_package, write_weights
from tasks.train.checkpoint import Checkpoints
from tasks.train.learner import Learner
from tasks.train.loop import TERMINATED, Listener, Termination, fit
from tasks.train.patches import Cases, Opener
from tasks.train.teaching import Trained, teaching_for

PreparedKeys = Mapping[tuple[str, str], str]
"""(volume, label) → the prepared case's key."""
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
    on_event: Listener | None = None,
    cancel: threading.Event | None = None,
) -> ModelPackage:
    """Train on the training split and write `weights.safetensors` and `package.json` into `staged`.

    `workspace` keeps the checkpoints (`discard_checkpoints` once the package is published); called again after a
    kill, it goes on from the newest. `key` is the package's content key. Setting `cancel`, or SIGTERM in the main
    thread, saves a checkpoint and raises SystemExit(143). Raises NothingToDoError without a training case,
    TrainingError, MemoryExhaustedError.
    """
    rows, judged = (_ready(dataset.split(side), prepared_keys) for side in ("train", "validation"))
    if not rows:
        raise NothingToDoError("the dataset has no training case", where=dataset.name, hint="ingest labelled studies")
    device = choose_device(plan.train.device)
    teaching, cases = teaching_for(plan), _cases(prepared, prepared_keys, rows)
    validation = teaching.validation(_cases(prepared, prepared_keys, judged), judged, device) if judged else None
    learner, termination = Learner(plan, device, teaching.objective(device)), Termination(cancel)
    checkpoints = Checkpoints(workspace / _CHECKPOINTS, f"{key}.{plan.key}")
    fit(learner, teaching.sampler(cases, rows), validation, checkpoints, on_event=on_event, termination=termination)
    network = learner.final()
    with termination.listening(), _leaving():
        trained = [Trained(network, learner.precision, validation)] if validation else []
        choices = teaching.choose(recipe, trained, termination)
    staged.mkdir(parents=True, exist_ok=True)
    package = ModelPackage(
        key=key,
        recipe=recipe,
        plan=plan,
        dataset=dataset.key,
        weights_sha256=write_weights(staged, network.state_dict()),
        training=_record(learner, choices.notes, validated=validation is not None),
        environment=_environment(code),
        threshold=choices.threshold,
        thresholds=choices.thresholds,
        keep_largest=choices.keep_largest,
        temperature=choices.temperature,
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


def _cases(prepared: Opener, keys: PreparedKeys, rows: Sequence[DatasetRow]) -> Cases:
    return Cases(prepared, [keys[row.volume, row.label] for row in rows])


def _record(learner: Learner, more: tuple[str, ...], *, validated: bool) -> TrainingRecord:
    position = learner.position
    notes = () if validated else ("no validation case: the last weights were taken, unjudged",)
    return TrainingRecord(
        steps=position.step,
        epochs=position.step // learner.plan.train.steps_per_epoch,
        seconds=position.seconds,
        stopped_by=cast(Literal["epochs", "minutes", "patience"], position.stopped_by),
        device=_device_name(learner.device),
        precision=learner.precision,
        batch_size=position.batch_size,
        parameters=learner.parameters,
        best_metric=position.best_metric or 0.0,
        best_step=position.best_step if validated else position.step,
        history=tuple((int(s), loss, metric) for s, loss, metric, _ in position.history) if validated else (),
        notes=(*position.notes, *notes, *more),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


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
