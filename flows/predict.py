"""A study arrived: ingest it, and let the champion say what it shows."""

from __future__ import annotations

from flows.artifacts import show_table
from flows.environment import open_stores
from flows.heartbeats import flow
from flows.ingest import ingest
from flows.parts import THREADS
from flows.views import PREDICTION_COLUMNS, predictions_told
from models.refs import BatchRef
from tasks.ingest import door as ingesting
from tasks.predict import door as predicting
from tasks.register import door as registering
from tasks.stores.packages import read_description


@flow(name="predict", flow_run_name="predict {batch} with {model}", task_runner=THREADS)
def predict(batch: BatchRef, model: str, version: str = "champion") -> tuple[str, ...]:
    """Ingest `batch` and apply a version of `model`; returns the predictions' keys."""
    stores = open_stores()
    package = registering.resolve(stores, model, version)
    arrived = ingest(batch, read_description(stores.packages.local(package.key)).recipe.images)
    if arrived.volumes and arrived.already_there:
        ingesting.mend(stores, arrived.volumes)
    found = predicting.predict(stores, package, arrived.volumes)
    rows = [dict(zip(PREDICTION_COLUMNS, row, strict=True)) for row in predictions_told(stores, found)]
    show_table("predict", f"What {model} {version} says", rows)
    return found
