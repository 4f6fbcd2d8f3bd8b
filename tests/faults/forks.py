"""Attempts at a night, each in a process forked from one that has imported everything (`serve`).

It reads an attempt a line as JSON and answers with what became of it. What is imported runs nothing and opens
no file, so that a fork of it is as good as new.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed  # noqa: F401 - this and the next two: imported once, not in every fork
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

from flows.doctor import examine
from flows.environment import open_stores
from models.hospital import Destination
from models.recipe import Recipe
from models.refs import AnalysisRef
from models.settings import Settings
from tasks.deliver.run import Dispatcher, enqueue
from tasks.evaluate import run as evaluating
from tasks.evaluate import summary
from tasks.ingest.build import build_dataset
from tasks.ingest.labels.run import LabelIngestor
from tasks.ingest.run import Ingestor, IngestRules
from tasks.preprocess import stored as preprocessing
from tasks.register import run as registering
from tasks.stores.evaluations import report_files
from tasks.stores.house import Stores
from tasks.stores.tables import AnalysisRow
from tasks.train.binding import train_together
from tests.faults.attempts import STAGES
from tests.faults.strike import Strike
from tests.tasks.deliver.installation import stores_at

Step = tuple[str, Callable[[], object]]


def night(stores: Stores, recipe: Recipe, cohort: str) -> Iterator[Step]:
    """What `flows.retrain` does, without Prefect: each stage by its name."""
    rules = IngestRules(allow_without_burned_in=frozenset(recipe.images.allow_without_burned_in))
    made: dict[str, Any] = {}

    def ingest() -> None:
        batch = stores.seal_batch([Path(cohort)])
        images = Ingestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer, rules, workers=1)
        labels = LabelIngestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer)
        found = images.scan(stores.open_batch(batch))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(images.ingest, found.series))
            list(pool.map(labels.ingest, found.labels))

    def preprocess() -> None:
        built = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes)
        made["plan"] = preprocessing.plan_training(stores, recipe, built.ref)
        preprocessing.prepare_planned(stores, recipe, made["plan"])
        made["dataset"] = built.ref

    def train() -> None:
        made["package"] = train_together(stores, recipe, made["plan"])

    def evaluate() -> None:
        made["evaluation"] = evaluating.evaluate_package(stores, made["package"], made["dataset"])

    def register() -> None:
        champion = registering.champion(stores, recipe.name)
        before = evaluating.evaluate_package(stores, champion, made["dataset"]) if champion else None
        comparison = evaluating.compare(stores, before, made["evaluation"]) if before else None
        done = registering.register(stores, made["package"], made["evaluation"], before, comparison)
        report = summary.write(stores, made["evaluation"], before, done)
        stores.registry.attach_report(done.run_id, *report_files(report))

    return zip(STAGES, (ingest, preprocess, train, evaluate, register), strict=True)


def post(stores: Stores, destinations: tuple[Destination, ...]) -> Iterator[Step]:
    """Deliver every analysis everywhere. A lease is over at once: whoever held it before is dead."""

    def deliver() -> None:
        for row in stores.catalog.find(AnalysisRow, order_by=AnalysisRow.analysis):
            enqueue(stores, AnalysisRef.to(row.analysis), destinations)
        dispatcher = Dispatcher(stores, destinations, ae_title="NOCTURNE", lease_seconds=0.0)
        while dispatcher.run_due():
            pass

    yield "deliver", deliver


def sweep(stores: Stores, settings: Settings) -> Iterator[Step]:
    """`nocturne doctor --repair`."""

    def repair() -> None:
        told = [f"{check.name}: {check.found}, {check.advice}" for check in examine(settings, repair=True)]
        print("\n".join(told), flush=True)

    yield "sweep", repair


def steps_of(asked: dict[str, Any]) -> Iterator[Step]:
    """Of one attempt."""
    home = Path(asked["home"])
    if asked["work"] == "deliver":
        targets = tuple(Destination.model_validate(one) for one in asked["destinations"])
        return post(stores_at(home), targets)
    os.environ["NOCTURNE_HOME"] = str(home)
    settings = Settings.load()
    if asked["work"] == "sweep":
        return sweep(open_stores(settings), settings)
    return night(open_stores(settings), Recipe.parse(asked["recipe"]), asked["cohort"])


def attempt(asked: dict[str, Any]) -> None:
    """In the fork: go through the stages in their order; die in `stage` as asked, else end with it."""
    strike = Strike(asked["home"], asked["tally"], asked["at"], asked["delay"])
    for name, step in steps_of(asked):
        if name == asked["stage"]:
            strike.arm_all()
        step()
        if name == asked["stage"]:
            return


def forked(asked: dict[str, Any]) -> dict[str, Any]:
    """Attempt it in a process, and group, of its own."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            with Path(asked["log"]).open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            attempt(asked)
            code = 0
        except BaseException:  # noqa: BLE001 - told by the log; nothing of the parent's may run in the child
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    tally = Path(asked["tally"])
    return {"ended": os.waitstatus_to_exitcode(status), "changes": tally.stat().st_size if tally.exists() else 0}


def serve() -> None:
    """Attempt what standard input asks for, one after another."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(forked(json.loads(line))) + "\n")
