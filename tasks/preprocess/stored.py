"""Plan and prepared arrays from the stores: each is made once per dataset and recipe."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from models.dataset import Dataset, DatasetRow
from models.errors import IntegrityError, NocturneError, NotFoundError, NothingToDoError, RecipeError
from models.hashing import content_key
from models.plan import Plan
from models.recipe import Recipe
from models.refs import DatasetRef, PackageRef, PlanRef, PreparedRef
from tasks.imaging.device import choose_device
from tasks.preprocess.cluster import compute_client
from tasks.preprocess.dryrun import step_seconds
from tasks.preprocess.nights import plan_of_the_night, read_before
from tasks.preprocess.patients import series_of
from tasks.preprocess.plan import make_plan
from tasks.preprocess.run import Case, Reading, case_key, fingerprint_dataset, prepare_dataset
from tasks.preprocess.variables import plan_variables
from tasks.preprocess.workers import of_this_house
from tasks.stores.house import Stores
from tasks.stores.tables import PlanRow, QuarantineRow, VolumeRow, now
from tasks.stores.unlabelled import unlabelled_cases

if TYPE_CHECKING:
    from distributed import Client

STAGE = "preprocess"
_SHARE_OF_FREE_MEMORY = 0.75
_PROVEN_BYTES = 4 << 30
_log = logging.getLogger(__name__)


def plan_training(stores: Stores, recipe: Recipe, ref: DatasetRef, champion: PackageRef | None = None) -> PlanRef:
    """Look at the training split and plan, unless that was done for this dataset and recipe.

    Where the recipe's `nights.plan` says so, the plan of the `champion` is kept. Raises RecipeError early where the
    file of weights to start from is not there.
    """
    following = champion if recipe.nights.plan != "every-night" else None
    key = content_key("plan", ref.key, recipe.learning_key, *([following.key] if following else []))
    if stores.catalog.get(PlanRow, key):
        return PlanRef.to(key)
    _check_start(recipe)
    dataset = stores.datasets.read(ref.key)
    cases, reading = _cases(stores, recipe, dataset.split("train")), _reading(recipe, dataset)
    with _client(stores, cases) as client:
        seen = fingerprint_dataset(
            client,
            cases,
            reading,
            _root(stores),
            dataset=ref.key,
            modality=_commonest(row.modality for row in dataset.rows),
            modalities=_modalities(stores, recipe, dataset),
            outliers=recipe.preprocess.outliers,
            seed=recipe.seed,
        )
    _set_aside(stores, seen.failures)
    memory = stores.locations.memory_gb or psutil.virtual_memory().available / 1e9 * _SHARE_OF_FREE_MEMORY
    device = choose_device(recipe.train.device)
    anew = partial(
        make_plan,
        recipe,
        seen.fingerprint,
        dataset.classes,
        memory_gb=memory,
        device=str(device),
        series=series_of(recipe, dataset.split("train")),
        variables=plan_variables(recipe.clinical.variables, dataset.split("train")),
        measure=partial(step_seconds, device=device),
    )
    plan = plan_of_the_night(
        recipe, dataset, seen.fingerprint, read_before(stores, following) if following else None, anew
    )
    if recipe.start.source == "pretraining":
        plan = plan.model_copy(update={"unlabelled": unlabelled_cases(stores.catalog, recipe, dataset)})
    stores.catalog.add(
        PlanRow(
            plan=key,
            dataset=ref.key,
            document=plan.model_dump(mode="json"),
            fingerprint=seen.fingerprint.model_dump(mode="json"),
        )
    )
    return PlanRef.to(key)


def prepare_planned(stores: Stores, recipe: Recipe, ref: PlanRef) -> PreparedRef:
    """Prepare every case of the plan's training and validation splits that is not prepared yet."""
    row = stores.catalog.get(PlanRow, ref.key)
    if row is None:
        raise NotFoundError("no such plan", where=ref.key, hint="run `nocturne retrain` again")
    plan, dataset = Plan.model_validate(row.document), stores.datasets.read(row.dataset)
    cases = _cases(stores, recipe, [*dataset.split("train"), *dataset.split("validation")])
    cases += _unlabelled(stores, recipe, plan)
    reading = _reading(recipe, dataset)
    grids = plan.grids
    _discard_damaged(stores, sorted({case_key(case, reading, grid) for case in cases for grid in grids}))
    new = [case for case in cases if not all(stores.prepared.exists(case_key(case, reading, grid)) for grid in grids)]
    with _client(stores, new) as client:
        outcomes = [prepare_dataset(client, cases, reading, grid, _root(stores)) for grid in grids]
    for outcome in outcomes:
        _set_aside(stores, outcome.failures)
    if not all(outcome.done for outcome in outcomes):
        raise NothingToDoError(
            f"none of the {len(cases)} cases could be prepared",
            where=recipe.name,
            hint="`nocturne status` lists them with their reasons",
        )
    return PreparedRef.to(content_key("prepared", sorted(key for outcome in outcomes for key in outcome.done.values())))


def _discard_damaged(stores: Stores, keys: Sequence[str]) -> None:
    """Remove prepared cases that are damaged, so that they are made anew: every night lost files and cut ones, and by
    checksum as many as `_PROVEN_BYTES`, others each night.
    """
    left, day = _PROVEN_BYTES, f"{now():%Y-%m-%d}"
    for key in sorted(keys, key=lambda key: content_key(day, key)):
        try:
            case = stores.prepared.open(key)
            left -= case.image.nbytes
            if left >= 0:
                stores.prepared.verify(key)
        except NotFoundError:
            continue
        except IntegrityError as error:
            _log.warning("prepared case %s is made anew: %s", key, error.what)
            stores.prepared.remove(key)


def _cases(stores: Stores, recipe: Recipe, rows: Sequence[DatasetRow]) -> list[Case]:
    url, registration = stores.locations.volumes, recipe.images.registration
    return [Case(url, row.volume, row.label, row.target, row.classes, row.channels, registration) for row in rows]


def _unlabelled(stores: Stores, recipe: Recipe, plan: Plan) -> list[Case]:
    url, registration = stores.locations.volumes, recipe.images.registration
    return [Case(url, first, channels=tuple(more), registration=registration) for first, *more in plan.unlabelled]


def _check_start(recipe: Recipe) -> None:
    """Hours of preparing would otherwise end at a misspelt path."""
    given = recipe.start.weights
    if given and not Path(given).expanduser().is_file():
        raise RecipeError("there is no such file", where="start.weights", hint="give the path as this machine sees it")


def _commonest(modalities: Iterable[str]) -> str:
    counts = Counter(modalities)
    return max(counts, key=lambda modality: (counts[modality], modality))


def _modalities(stores: Stores, recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
    """Each channel's, where cases are made of several series; where a channel allows several, the commonest."""
    found = []
    for place, channel in enumerate(recipe.images.channels):
        keys = [row.channels[place - 1] if place else row.volume for row in dataset.split("train")]
        asked = sorted({key for key in keys if key}) if len(channel.modality) > 1 else ()
        rows = list(stores.catalog.among(VolumeRow, VolumeRow.volume, asked))
        found.append(_commonest(row.modality for row in rows) if rows else channel.modality[0])
    return tuple(found)


def _reading(recipe: Recipe, dataset: Dataset) -> Reading:
    return Reading(recipe.labels.meaning(dataset.classes), recipe.labels.fraction, recipe.labels.regions)


def _root(stores: Stores) -> Path:
    return Path(stores.locations.prepared)


@contextmanager
def _client(stores: Stores, cases: Sequence[Case]) -> Iterator[Client | None]:
    """For the work on `cases`. A night with nothing new starts no cluster."""
    here = stores.locations
    if not cases:
        yield None
        return
    with compute_client(here.dask_address, stores.workers, here.dask_tls, here.dask_unencrypted) as client:
        wanted = (case.volume for case in cases)
        far = client is not None and here.dask_address
        with of_this_house(client, _root(stores), stores.volumes.place, wanted) if far else nullcontext():
            yield client


def _set_aside(stores: Stores, failures: Sequence[tuple[Case, NocturneError]]) -> None:
    stores.catalog.add(
        *[
            QuarantineRow(
                entry=content_key("quarantine", STAGE, case.volume, case.label, error.reason),
                stage=STAGE,
                subject=case.volume,
                reason=error.reason,
                what=error.what,
                hint=error.hint or "",
            )
            for case, error in failures
        ]
    )
