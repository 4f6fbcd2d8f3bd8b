"""From a plan and prepared cases to a model package."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from models.dataset import Dataset, DatasetRow
from models.errors import NothingToDoError
from models.package import Configuration, Environment, ModelPackage, TrainingRecord
from models.plan import Fingerprint, Plan
from models.recipe import Recipe
from tasks.imaging.device import choose_device
from tasks.stores.packages import write_package, write_weights
from tasks.train.learning import PreparedKeys, places
from tasks.train.loop import TERMINATED, Listener, Termination
from tasks.train.patches import Cases, Opener
from tasks.train.school import School, Taught
from tasks.train.selection import compared, told
from tasks.train.teaching import teaching_for
from tasks.train.together import bound
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
    more_keys: Mapping[str, PreparedKeys] | None = None,
    on_event: Listener | None = None,
    cancel: threading.Event | None = None,
    processes: int = 0,
) -> ModelPackage:
    """Train on the training split and write `weights.safetensors` and `package.json` into `staged`.

    With folds the networks learn one after the other, or one on each GPU, and the package holds them all. Otherwise a
    network learns in as many `processes` as are wanted (0: one per GPU), which share out each batch. `workspace`
    keeps the checkpoints (`discard_checkpoints` once the package is published); called again after a kill, it goes on
    from the newest, and what has learnt does not learn again. `key` is the package's content key. `origin` is what it
    starts from, where the plan names weights or a champion; where the plan asks for pretraining, the prepared cases
    `unlabelled` are seen besides the training cases. Where there are several stages or candidates, `more_keys` are the
    cases prepared in other ways, by `PreparePlan.key`; of candidates the best goes into the package, or the best two.
    Setting `cancel`, or SIGTERM in the main thread, saves a checkpoint and raises SystemExit(143). Raises
    NothingToDoError without a training case, RecipeError, TrainingError, MemoryExhaustedError.
    """
    keys = {plan.prepare.key: prepared_keys, **(more_keys or {})}
    rows, judged = (_ready(dataset.split(side), keys.values()) for side in ("train", "validation"))
    if not rows:
        raise NothingToDoError("the dataset has no training case", where=dataset.name, hint="ingest labelled studies")
    termination = Termination(cancel)
    if plan.train.start.source == "pretraining":
        images = Cases(prepared, [*(prepared_keys[row.volume, row.label] for row in rows), *unlabelled])
        origin = pretrain(plan, images, choose_device(plan.train.device), workspace / _CHECKPOINTS, key, termination)
    abreast = 1 if processes else places(plan.train.device)
    school = School(workspace / _CHECKPOINTS, key, prepared, keys, origin, abreast, termination, on_event, processes)
    taught = (
        {one.name: school.within(_folder(one.name)).teach(one.plan, rows, judged) for one in plan.candidates}
        if plan.candidates
        else {"": school.teach(plan, rows, judged)}
    )
    with termination.listening(), _leaving():
        table = compared(taught, termination) if plan.candidates else ()
        names = next((one.names for one in table if one.chosen), ("",))
        chosen = [taught[name] for name in names]
        choices = [teaching_for(one.plan).choose(recipe, one.trained, termination) for one in chosen]
    staged.mkdir(parents=True, exist_ok=True)
    course = chosen[0].learnt[0].course
    course.write(staged)
    described = [
        ModelPackage(
            key=key,
            recipe=recipe,
            plan=_with_notes(one.plan, plan),
            dataset=dataset.key,
            weights_sha256="0" * 64,  # of what is not written yet
            training=one.record(choice.notes),
            environment=_environment(code),
            threshold=choice.threshold,
            thresholds=choice.thresholds,
            keep_largest=choice.keep_largest,
            temperature=choice.temperature,
            started_from=course.key,
            members=one.members,
            fingerprint=fingerprint.model_dump(mode="json") if fingerprint else {},
        )
        for one, choice in zip(chosen, choices, strict=True)
    ]
    package, weights = described[0], chosen[0].weights
    if len(chosen) > 1:
        package, weights = bound(key, recipe, (package, weights), [(described[1], chosen[1].weights)])
    records = dict(zip(names, (one.training for one in described), strict=True))
    update = {"weights_sha256": write_weights(staged, weights), "training": _summed_up(records, taught, table)}
    package = package.model_copy(update=update)
    write_package(staged, package)
    return package


def _folder(name: str) -> str:
    """Of a candidate's checkpoints."""
    return name.replace("/", "-")


def _with_notes(plan: Plan, asked: Plan) -> Plan:
    """A candidate's plan with why it and the others are as they are, and what goes for all of them."""
    if not asked.candidates:
        return plan
    kept = {"notes": asked.notes, "drift": asked.drift, "made_for": asked.made_for}
    return plan.model_copy(update=kept)


def _summed_up(
    records: Mapping[str, TrainingRecord], taught: Mapping[str, Taught], table: Sequence[Configuration]
) -> TrainingRecord:
    """What was chosen, from what; the seconds are then those of everything that has learnt."""
    first = next(iter(records.values()))
    if not table:
        return first
    seconds = sum(one.seconds for one in taught.values())
    notes = (*told(table), *(f"{name}: {note}" for name, record in records.items() for note in record.notes))
    return first.model_copy(update={"configurations": tuple(table), "seconds": seconds, "notes": notes})


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


def _ready(rows: Sequence[DatasetRow], keys: Collection[PreparedKeys]) -> tuple[DatasetRow, ...]:
    """Without the cases that could not be prepared in every way: they are in quarantine, with their reasons."""
    return tuple(row for row in rows if all((row.volume, row.label) in known for known in keys))


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
