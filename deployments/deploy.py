"""Tells the Prefect server what there is to run, when, with what limits, and what it does when something goes wrong.

Doing it again changes nothing but what the settings have changed. What somebody has paused in the UI stays paused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from prefect import Flow

from deployments.blueprint import Blueprint, bring_up
from deployments.environment import HEARTBEAT_SECONDS
from deployments.names import ARRIVALS_POOL, BY_HAND, FROM_SETTINGS, REGULARLY, WORK_POOL
from deployments.pools import PoolType, training_pool
from flows.arrival import study_arrived
from flows.environment import QUIET
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.predict import predict
from flows.retrain import retrain
from flows.rollback import rollback
from flows.watching import watch
from models.errors import SettingsError
from models.recipe import Recipe
from models.settings import Settings

_TRAINING_ENVIRONMENT: Final = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    # Hours of work are worth some minutes of patience with a server that is started anew.
    "PREFECT_CLIENT_MAX_RETRIES": "9",
}


def deploy(settings: Settings, *, recipes: Sequence[Path] = (), training: PoolType = "process") -> tuple[str, ...]:
    """Bring the server up to date; returns the names of all deployments. It must be running.

    `recipes` are learnt nightly too, beside those of the settings. `training`: what all but arrivals run as. Raises
    SettingsError, RecipeError, ServiceUnavailableError.
    """
    here = [*_nightly(settings, recipes), *_watching(settings), *_by_hand()]
    return bring_up(settings, [*_arrivals(), *(_running_as(training, one) for one in here)], training=training)


def _running_as(kind: PoolType, blueprint: Blueprint) -> Blueprint:
    """In the pool of that type. A container starts without what `nocturne` sets in the environment of its processes."""
    if kind == "process":
        return blueprint
    return replace(blueprint, pool=training_pool(kind), environment={**QUIET, **blueprint.environment})


def _arrivals() -> Iterator[Blueprint]:
    yield Blueprint(
        study_arrived,
        "arrivals",
        ARRIVALS_POOL,
        "Each study that is whole: ingested, analysed by every model that serves, and sent back to the PACS.",
        ("arrival",),
    )


def _nightly(settings: Settings, recipes: Sequence[Path]) -> Iterator[Blueprint]:
    nightly, names = settings.nightly, set[str]()
    for path in (*nightly.recipes, *recipes):
        recipe = _recipe(path, settings.home)
        if recipe.name in names:
            raise SettingsError(
                f"two recipes are called {recipe.name!r}", where="nightly.recipes", hint="a model has one recipe"
            )
        names.add(recipe.name)
        asks = nightly.approval or recipe.promote.approval
        yield Blueprint(
            retrain,
            recipe.name,
            WORK_POOL,
            f"Every night ({nightly.cron}, {nightly.timezone}): learn {recipe.name} from all that is known, judge it "
            f"on the frozen test patients, and {'ask whether it may serve' if asks else 'let it serve'} "
            "where it is better.",
            ("training", *([FROM_SETTINGS] if path in nightly.recipes else [])),
            {
                "recipe": recipe.model_dump(mode="json"),
                "approval": asks,
                "approval_hours": nightly.approval_hours,
            },
            cron=nightly.cron,
            timezone=nightly.timezone,
            limit=1,
            environment=_TRAINING_ENVIRONMENT,
        )


def _watching(settings: Settings) -> Iterator[Blueprint]:
    nightly = settings.nightly
    yield Blueprint(
        watch,
        REGULARLY,
        WORK_POOL,
        "What serves is looked at: its last predictions beside what it was made and judged on. What has moved is told.",
        ("watching",),
        cron=nightly.watch,
        timezone=nightly.timezone,
        limit=1,
        environment=_TRAINING_ENVIRONMENT,
    )


def _by_hand() -> Iterator[Blueprint]:
    told: tuple[tuple[Flow[..., Any], str], ...] = (
        (ingest, "Take in a batch of places, by its reference."),
        (predict, "Let a version of a model say what a batch shows."),
        (evaluate, "Judge a version of a model on its recipe's test patients of today."),
        (rollback, "Let the champion before this one serve again, from the next study on."),
    )
    for flow, description in told:
        yield Blueprint(flow, BY_HAND, WORK_POOL, description, (BY_HAND,), environment=_TRAINING_ENVIRONMENT)


def _recipe(path: Path, home: Path) -> Recipe:
    """A relative path is looked for here, then in the home folder."""
    file = next((p for p in (path.expanduser(), home / path) if p.is_file()), None)
    if file is None:
        raise SettingsError("no such recipe", where=str(path), hint="give its full path under nightly.recipes")
    return Recipe.parse(file.read_bytes(), where=file.name)
