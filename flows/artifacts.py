"""What a run shows in the Prefect UI: tables, pictures, links and progress, none with an identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.health import mlflow_page
from flows.thumbnails import chosen, thumbnail
from flows.views import PREDICTION_COLUMNS, predictions_told
from models.evaluation import Evaluation
from models.plan import Plan
from models.refs import AnalysisRef, DatasetRef, EvaluationRef, PlanRef
from models.registration import Registered
from models.settings import Settings
from tasks.progress import stage
from tasks.retries import patiently
from tasks.stores.evaluations import report_files
from tasks.stores.house import Stores
from tasks.stores.tables import AnalysisRow, DatasetRecord, PackageRow, PlanRow

if TYPE_CHECKING:  # a night needs no DICOM networking
    from tasks.deliver.door import Delivered
    from tasks.receive.door import Opened


def show_pairs(key: str, title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """(what, value) pairs as a table."""
    create_table_artifact(key=key, description=title, table=[{"what": w, "value": str(v)} for w, v in rows])


def show_table(key: str, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table; an empty one says so."""
    create_table_artifact(key=key, description=title, table=[dict(row) for row in rows] or [{"": "none"}])


@patiently
def show_dataset(stores: Stores, name: str, ref: DatasetRef) -> None:
    """Patients and cases of each split, and whether the recipe of that name has learnt from these very data before."""
    row = stores.catalog.get(DatasetRecord, ref.key)
    if row is None:
        return
    learnt = (PackageRow.dataset == ref.key, PackageRow.name == name)
    before = stores.catalog.find(PackageRow, *learnt, order_by=PackageRow.created_at, limit=1)
    news = f"no new data since {before[0].created_at.astimezone():%Y-%m-%d %H:%M}" if before else "new data"
    counts = {split: (int(patients), int(cases)) for split, (patients, cases) in row.counts.items()}
    with stage("dataset", unit="cases") as told:
        told.advance(sum(cases for _, cases in counts.values()), news)
    rows = [{"split": s, "patients": patients, "cases": cases} for s, (patients, cases) in counts.items()]
    show_table("dataset", f"{name}: {', '.join(row.classes)} ({ref.key[:12]}), {news}", rows)


@patiently
def show_plan(stores: Stores, ref: PlanRef) -> None:
    """What the recipe became, with the reasons."""
    row = stores.catalog.get(PlanRow, ref.key)
    if row is not None:
        plan = Plan.model_validate(row.document)
        show_pairs("plan", f"The plan for {plan.recipe}", [*plan.rows(), *(("because", note) for note in plan.notes)])


@patiently
def show_evaluation(stores: Stores, ref: EvaluationRef, registered: Registered, report: Path) -> None:
    """The figures, the decision, a few of the report's pictures (inline: no file server is needed), and links."""
    evaluation = stores.evaluations.read(ref.key)
    show_table("evaluation", f"{registered.name} on {evaluation.n_patients} test patients", figures(evaluation))
    title = f"{registered.name} version {registered.version}: {registered.action}"
    site = mlflow_page(Settings.load())
    run = f"{site}/{registered.run_page}"
    page = f"{run}/artifacts/report/{report.name}"
    create_link_artifact(key="report-page", link=page, link_text=f"Report on {registered.name}", description=title)
    every = stores.evaluations.pictures(ref.key)
    shown = chosen(every)
    pictures = "\n\n".join(f"**{p.title}**\n\n![{p.alt}]({p.data_uri})" for p in shown)
    told = "\n".join(f"- {reason}" for reason in registered.reasons)
    files = ", ".join(f"`{file.name}`" for file in report_files(report))
    links = (
        f"{files} lie in `{report.parent}` and with [the run in MLflow]({run}); "
        f"[the report]({page}) opens there, [the version]({site}/{registered.page}) too."
    )
    rest = len(every) - len(shown)
    more = f"\n\n{rest} further picture{'s are' if rest > 1 else ' is'} in the report." if rest else ""
    create_markdown_artifact(
        key="report",
        description=title,
        markdown=f"## Version {registered.version}: {registered.action}\n\n{told}\n\n{links}\n\n{pictures}{more}",
    )


@patiently
def show_arrival(
    stores: Stores,
    study: Opened,
    arrived: Iterable[tuple[str, Any]],
    analyses: Sequence[AnalysisRef],
    delivered: Sequence[Delivered],
) -> None:
    """What came, what every model says of it, and where that was sent."""
    rows = [row for ref in analyses if (row := stores.catalog.get(AnalysisRow, ref.key)) is not None]
    conflict = [("conflict", "an instance came twice with different bytes; both are kept")] if study.flags else []
    show_pairs(
        "study",
        f"Study {study.study[-12:]}, version {study.number}",
        [("instances", study.instances), *arrived, *conflict],
    )
    show_table("findings", "What the models say", [said for row in rows for said in _said(stores, row)])
    if pictures := [told for row in rows for told in _seen(stores, row)]:
        create_markdown_artifact(key="pictures", description="Where it was found", markdown="\n\n".join(pictures))
    if delivered:
        sent = [
            {"destination": d.destination, "state": d.state, "objects": d.objects, "why": d.detail} for d in delivered
        ]
        show_table("delivery", "Where the results went", sent)


def _seen(stores: Stores, row: AnalysisRow) -> list[str]:
    drawn = [picture for key in row.predictions if (picture := thumbnail(stores, str(key)))]
    title = f"**{row.name} {row.model_version}**" + (", in shadow" if row.role == "shadow" else "")
    return [f"{title}\n\n![slices with outlines of what was found]({picture})" for picture in drawn]


def _said(stores: Stores, row: AnalysisRow) -> list[dict[str, str]]:
    told = [
        dict(zip(PREDICTION_COLUMNS, map(str, said), strict=True)) for said in predictions_told(stores, row.predictions)
    ]
    model = {"model": f"{row.name} {row.model_version}", "role": row.role}
    return [{**model, **said} for said in told] or [{**model, "found": row.detail or "nothing"}]


def figures(evaluation: Evaluation) -> list[dict[str, str]]:
    """One row a metric and class, rounded for people."""
    return [
        {
            "metric": summary.metric,
            "class": summary.class_name or "all",
            "value": f"{summary.interval.value:.4f}",
            "95 % interval": "none" if low is None else f"{low:.4f} to {summary.interval.high:.4f}",
            "patients": str(summary.interval.n),
        }
        for summary in evaluation.metrics
        for low in (summary.interval.low,)
    ]
