"""The night: what has arrived becomes a better model, if it is better."""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from flows.artifacts import ProgressArtifacts, show_dataset, show_evaluation, show_plan
from flows.environment import open_stores
from flows.ingest import ingest
from flows.parts import THREADS
from models.recipe import Recipe
from models.refs import BatchRef
from models.registration import Night
from tasks.evaluate import door as evaluating
from tasks.ingest import door as ingesting
from tasks.preprocess import door as preprocessing
from tasks.progress import shown_on
from tasks.register import door as registering
from tasks.train import door as training


@flow(name="retrain", flow_run_name="retrain {recipe.name}", task_runner=THREADS)
def retrain(recipe: Recipe, batch: BatchRef | None = None) -> Night:
    """Ingest what is new, learn, judge on the frozen test patients, and promote what is better."""
    stores = open_stores()
    if batch is not None:
        ingest(batch, recipe.images)

    dataset = ingesting.build(stores, recipe)
    plan = preprocessing.plan(stores, recipe, dataset)
    prepared = preprocessing.prepare(stores, recipe, plan)
    show_dataset(stores, dataset)
    show_plan(stores, plan)
    with shown_on(ProgressArtifacts()):
        package = training.train(stores, recipe, plan, prepared)

    evaluation = evaluating.evaluate(stores, package, dataset)
    champion = registering.champion(stores, recipe.name)
    before = evaluating.evaluate(stores, champion, dataset) if champion else None
    comparison = evaluating.compare(stores, before, evaluation) if before else None

    registered = registering.register(stores, package, evaluation, before, comparison)
    report = evaluating.report(stores, evaluation, before, registered)
    registering.attach(stores, registered, report)

    show_evaluation(stores, evaluation, registered, report)
    return Night(dataset=dataset, evaluation=evaluation, registered=registered, report=report, run=str(flow_run.id))
