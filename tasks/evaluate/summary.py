"""The report on one evaluation, gathered from the stores."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from models.hashing import content_key
from models.package import ModelPackage
from models.plan import Outlier
from models.refs import EvaluationRef
from models.registration import Registered
from tasks.evaluate.report import Decision, Exclusion, ReportData, render
from tasks.evaluate.run import compare
from tasks.stores.evaluations import REPORT_FILE
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import EvaluationRow, QuarantineRow


def write(
    stores: Stores,
    ref: EvaluationRef,
    champion: EvaluationRef | None,
    registered: Registered,
    without: EvaluationRef | None = None,
) -> Path:
    """The HTML file, written once per evaluation, champion, decision, and evaluation without made images."""
    decision = [registered.action, list(registered.reasons)]
    key = content_key("report", ref.key, champion.key if champion else None, decision, without.key if without else None)
    if stores.evaluations.place.exists(key):
        return stores.evaluations.place.local(key) / REPORT_FILE
    evaluation = stores.evaluations.read(ref.key)
    row = stores.catalog.get(EvaluationRow, ref.key)
    package = read_description(stores.packages.local(evaluation.package))
    data = ReportData(
        evaluation=evaluation,
        created_at=row.created_at if row else datetime.now(UTC),
        package=package,
        champion=_described(stores, champion) if champion and champion != ref else None,
        dataset=stores.datasets.read(evaluation.dataset),
        decision=Decision(registered.action, "; ".join(registered.reasons)),
        comparison=compare(stores, champion, ref) if champion and champion != ref else None,
        without=compare(stores, without, ref) if without else None,
        cases=stores.evaluations.cases(ref.key),
        exclusions=_set_aside(stores),
        pictures=stores.evaluations.pictures(ref.key),
        notes=_unusual(package),
        provenance=(("registered as", f"{registered.name} version {registered.version}"),),
    )
    return stores.evaluations.write_report(key, render(data))


def _described(stores: Stores, evaluation: EvaluationRef) -> ModelPackage:
    """The package that was judged."""
    return read_description(stores.packages.local(stores.evaluations.read(evaluation.key).package))


def _set_aside(stores: Stores) -> tuple[Exclusion, ...]:
    """What lies in quarantine, by stage and reason, with one example's words."""
    rows = stores.catalog.find(QuarantineRow, QuarantineRow.resolved_at.is_(None))
    counts = Counter((row.stage, row.reason) for row in rows)
    meaning = {(row.stage, row.reason): row.what for row in rows}
    return tuple(Exclusion(stage, reason, n, meaning[stage, reason]) for (stage, reason), n in sorted(counts.items()))


def _unusual(package: ModelPackage) -> tuple[str, ...]:
    """Training cases far from the rest, as the recipe's outlier check found them: they were used all the same."""
    found = [Outlier.model_validate(outlier) for outlier in package.fingerprint.get("outliers", ())]
    return tuple(f"unusual case {o.volume[:12]}: {o.measure} {o.value:.4g}, others {o.expected}" for o in found)
