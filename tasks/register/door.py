"""The door of the register room."""

from __future__ import annotations

from pathlib import Path

from models.approval import Word
from models.evaluation import Comparison
from models.recipe import Promote, Recipe
from models.refs import DatasetRef, EvaluationRef, PackageRef
from models.registration import Registered, Serving
from tasks.door import door
from tasks.register import run
from tasks.stores.evaluations import report_files
from tasks.stores.house import Stores


@door("champion", run_name="champion of {name}", minutes=10)
def champion(stores: Stores, name: str) -> PackageRef | None:
    """The package that serves, if any."""
    return run.champion(stores, name)


@door("resolve", run_name="resolve {name} {version}", minutes=10)
def resolve(stores: Stores, name: str, version: str) -> PackageRef:
    """The package of a version's number or alias."""
    return run.resolve(stores, name, version)


@door("serving", run_name="what serves", minutes=10)
def serving(stores: Stores, names: tuple[str, ...], shadow: bool) -> tuple[Serving, ...]:
    """What runs on an arrived study: the champions of those models (all, where none is named), and challengers."""
    return run.serving(stores, names, shadow=shadow)


@door("register", run_name="register {package}", minutes=30)
def register(
    stores: Stores,
    package: PackageRef,
    evaluation: EvaluationRef,
    champion: EvaluationRef | None,
    comparison: Comparison | None,
    word: Word | None = None,
    policy: Promote | None = None,
) -> Registered:
    """Log the package with its lineage and card; promote it, or keep it as challenger with the reason.

    `word` is what a person said of it, where one was asked: a no keeps it. `policy` is the recipe's of today.
    """
    return run.register(stores, package, evaluation, champion, comparison, word, policy)


@door("would serve", run_name="may {package} serve", minutes=10)
def would_serve(
    stores: Stores,
    package: PackageRef,
    evaluation: EvaluationRef,
    champion: EvaluationRef | None,
    comparison: Comparison | None,
    policy: Promote | None = None,
) -> bool:
    """Whether the gate would promote it now, if nobody objects. Changes nothing."""
    return run.would_serve(stores, package, evaluation, champion, comparison, policy)


@door("check policy", run_name="check the policy of {recipe.name}", minutes=10)
def check(stores: Stores, recipe: Recipe, dataset: DatasetRef) -> None:
    """Whether the recipe's policy can be carried out: a class that the model lacks is told before it learns."""
    run.check(stores, recipe, dataset)


@door("serving version", run_name="the version of {name} that serves", minutes=10)
def serving_version(stores: Stores, name: str) -> str:
    """The number of the version that serves."""
    return run.serving_version(stores, name)


@door("roll back", run_name="roll {name} back from version {leaving}", minutes=10)
def rollback(stores: Stores, name: str, leaving: str, who: str, reason: str) -> str:
    """Let the champion before version `leaving` serve again; returns its number. Tried again, it goes back once."""
    return run.rollback(stores, name, who=who, reason=reason, leaving=leaving)


@door(
    "attach report",
    run_name="attach report to {registered.name} {registered.version}",
    minutes=10,
    persist=False,
)
def attach(stores: Stores, registered: Registered, report: Path) -> None:
    """Keep the report beside the version in the registry: the page, its document and the cases."""
    stores.registry.attach_report(registered.run_id, *report_files(report))
