"""The end of a night with approval, without the night."""

from __future__ import annotations

from prefect import flow

from flows.approval import word_of_a_person
from flows.environment import open_stores
from models.evaluation import Comparison
from models.refs import EvaluationRef, PackageRef
from tasks.register import door as registering


@flow(name="asking")
def asking(
    name: str,
    package: PackageRef,
    after: EvaluationRef,
    before: EvaluationRef | None = None,
    comparison: Comparison | None = None,
    approval_hours: float = 12.0,
) -> str:
    """What was judged is asked about and registered."""
    stores, word = open_stores(), None
    if registering.would_serve(stores, package, after, before, comparison):
        word = word_of_a_person(stores, name, after, before, comparison, approval_hours)
    return registering.register(stores, package, after, before, comparison, word).action
