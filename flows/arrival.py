"""A study arrived: ingest it, let the champions say what it shows, and send that back to the PACS."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from flows.artifacts import show_arrival
from flows.environment import open_stores
from flows.heartbeats import flow
from flows.ingest import Ingested, ingest
from flows.parts import THREADS
from flows.states import away, caused_by_absence, said
from models.refs import AnalysisRef, StudyVersionRef
from models.settings import Settings
from tasks.deliver import door as delivering
from tasks.deliver.door import Delivered
from tasks.ingest import door as ingesting
from tasks.predict import door as predicting
from tasks.receive import door as receiving
from tasks.receive.door import Outcome
from tasks.register import door as registering
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import AnalysisRow


class Handled(BaseModel):
    """What became of a study version."""

    model_config = ConfigDict(frozen=True)
    outcome: Outcome
    detail: str
    analyses: tuple[AnalysisRef, ...] = ()
    delivered: tuple[Delivered, ...] = ()


@flow(name="study arrived", flow_run_name="study {version}", task_runner=THREADS)
def study_arrived(version: StudyVersionRef) -> Handled | State[Any]:
    """Ingest a study version, analyse it with every model that serves, and deliver the results.

    What a server's absence ends stays open, and the run's state says so: nobody has to look, it goes on by itself.
    """
    try:
        return _handled(version)
    except Exception as error:
        if not caused_by_absence(error):
            raise
        return away(error)


def _handled(version: StudyVersionRef) -> Handled:
    stores, settings = open_stores(), Settings.load()
    study = receiving.open_version(stores, version, str(flow_run.id))
    if study.batch is None:
        return Handled(outcome="ingested", detail=f"brought to an end before, by run {study.done_by}")
    try:
        serving = registering.serving(stores, settings.arrivals.models, settings.arrivals.shadow)
        described = [read_description(stores.packages.local(model.package.key)) for model in serving]
        arrived = ingest(study.batch, tuple(package.recipe.images for package in described))
        if arrived.volumes and arrived.already_there:
            ingesting.mend(stores, arrived.volumes)
        analyses = tuple(
            predicting.analyse(stores, version, model.package, arrived.volumes, model.name, model.version, model.role)
            for model in (serving if arrived.volumes else ())
        )
        delivered = tuple(
            sent
            for analysis, model in zip(analyses, serving, strict=False)
            if model.role == "champion" and settings.destinations
            for sent in delivering.deliver(stores, analysis, settings.destinations, settings.listener.ae_title)
        )
        outcome, detail = _told(stores, arrived, analyses, delivered)
    except Exception as error:
        if not caused_by_absence(error):
            receiving.close_version(stores, version, "failed", said(error))
        raise
    receiving.close_version(stores, version, outcome, detail)
    show_arrival(stores, study, arrived.rows(), analyses, delivered)
    return Handled(outcome=outcome, detail=detail, analyses=analyses, delivered=delivered)


def _told(
    stores: Stores, arrived: Ingested, analyses: tuple[AnalysisRef, ...], delivered: tuple[Delivered, ...]
) -> tuple[Outcome, str]:
    """How far it came, and why no further."""
    if not arrived.volumes and not arrived.labels and arrived.quarantined:
        return "quarantined", ", ".join(f"{n} × {reason}" for reason, n in sorted(arrived.quarantined.items()))
    if arrived.corrections and not delivered:
        return "ingested", f"predictions that its labels correct: {len(arrived.corrections)}"
    if not analyses:
        return "ingested", "no model serves" if arrived.volumes else "no images in it"
    rows = [row for ref in analyses if (row := stores.catalog.get(AnalysisRow, ref.key)) is not None]
    if all(row.outcome == "nothing-fits" for row in rows):
        return "nothing-fits", "; ".join(f"{row.name}: {row.detail}" for row in rows)
    if not any(row.predictions for row in rows):
        return "quarantined", "; ".join(f"{row.name}: {row.detail}" for row in rows)
    if late := [sent for sent in delivered if sent.state == "waiting"]:
        return "waiting", "; ".join(f"{sent.destination}: {sent.detail}" for sent in late)
    if refused := [sent for sent in delivered if sent.state == "refused"]:
        return "refused", "; ".join(f"{sent.destination}: {sent.detail}" for sent in refused)
    return ("delivered" if delivered else "predicted"), ""
