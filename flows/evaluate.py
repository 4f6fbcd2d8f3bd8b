"""A registered model on its recipe's test patients of today."""

from __future__ import annotations

from flows.artifacts import figures, show_table
from flows.environment import open_stores
from flows.heartbeats import flow
from models.evaluation import Evaluation
from tasks.evaluate import door as evaluating
from tasks.ingest import door as ingesting
from tasks.register import door as registering
from tasks.stores.packages import read_description


@flow(name="evaluate", flow_run_name="evaluate {model} {version}")
def evaluate(model: str, version: str = "champion") -> Evaluation:
    """Judge a version on the dataset that its recipe means now."""
    stores = open_stores()
    package = registering.resolve(stores, model, version)
    dataset = ingesting.build(stores, read_description(stores.packages.local(package.key)).recipe)
    found = evaluating.evaluate(stores, package, dataset)
    judged = stores.evaluations.read(found.key)
    show_table("evaluation", f"{model} {version} on {judged.n_patients} test patients", figures(judged))
    return judged
