"""The night: what has arrived becomes a better model, if it is better."""

from __future__ import annotations

from prefect.runtime import flow_run

from flows.approval import word_of_a_person
from flows.artifacts import show_dataset, show_evaluation, show_plan
from flows.environment import open_stores
from flows.heartbeats import flow
from flows.ingest import ingest
from flows.night import for_this_night, one_training_at_a_time, patient
from flows.parts import THREADS
from flows.progress import progress_artifacts
from flows.synthetic import judged_without, with_made_images
from flows.watching import watched
from models.recipe import Recipe
from models.refs import BatchRef
from models.registration import Night
from tasks.correct import door as correcting
from tasks.evaluate import door as evaluating
from tasks.ingest import door as ingesting
from tasks.preprocess import door as preprocessing
from tasks.register import door as registering
from tasks.retries import patiently
from tasks.train import door as training


@flow(name="retrain", flow_run_name="retrain {recipe.name}", task_runner=THREADS)
def retrain(
    recipe: Recipe, batch: BatchRef | None = None, approval: bool = False, approval_hours: float = 12.0
) -> Night:
    """Ingest what is new, learn, judge on the frozen test patients, and promote what is better.

    With `approval`, or where the recipe's policy wants it, a person is asked before a model is promoted; without an
    answer in time the champion stays.
    """
    with patient():  # not a decorator of the flow: Prefect looks for its parameters' types where the function is from
        return _night(recipe, batch, approval, approval_hours)


def _night(recipe: Recipe, batch: BatchRef | None, approval: bool, approval_hours: float) -> Night:
    stores = patiently(open_stores)()
    if batch is not None:
        ingest(batch, recipe.images)
    ingesting.mend(stores, ())
    correcting.correct(stores)

    real = for_this_night(ingesting.build)(stores, recipe)
    registering.check(stores, recipe, real)
    dataset = with_made_images(stores, recipe, real)
    show_dataset(stores, recipe.name, dataset)
    followed = for_this_night(registering.champion)(stores, recipe.name) if recipe.follows else None
    plan = preprocessing.plan(stores, recipe, dataset, followed)
    prepared = preprocessing.prepare(stores, recipe, plan)
    show_plan(stores, plan)
    others = tuple(registering.champion(stores, name) for name in recipe.infer.ensemble)
    with one_training_at_a_time(), progress_artifacts():
        package = training.train(stores, recipe, plan, prepared, followed, others)

    evaluation = evaluating.evaluate(stores, package, dataset)
    champion = registering.champion(stores, recipe.name)
    before = evaluating.evaluate(stores, champion, dataset) if champion else None
    comparison = evaluating.compare(stores, before, evaluation) if before else None

    policy, word = recipe.promote, None
    asked = approval or policy.approval
    if asked and registering.would_serve(stores, package, evaluation, before, comparison, policy):
        word = word_of_a_person(stores, recipe.name, evaluation, before, comparison, approval_hours)
    registered = registering.register(stores, package, evaluation, before, comparison, word, policy)
    without = judged_without(stores, recipe, real, followed)
    report = evaluating.report(stores, evaluation, before, registered, without, comparison)
    registering.attach(stores, registered, report)

    show_evaluation(stores, evaluation, registered, report)
    watched(stores, (recipe.name,))  # last: what fails here costs no report
    return Night(dataset=dataset, evaluation=evaluation, registered=registered, report=report, run=str(flow_run.id))
