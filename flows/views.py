"""Rows for the terminal's tables, read from the stores."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from flows.drifting import alerts_told
from models.account import DELIVERED, WAITING, Account
from tasks.stores.account import REFUSED, account, strays
from tasks.stores.alerts import open_alerts
from tasks.stores.house import Stores
from tasks.stores.tables import (
    DatasetRecord,
    DecisionRow,
    DeliveryRow,
    EvaluationRow,
    LabelRow,
    OutboxRow,
    PackageRow,
    PredictionRow,
    QuarantineRow,
    SeriesRow,
    SplitRow,
    StudyRow,
    StudyVersionRow,
    VolumeRow,
    now,
)

if TYPE_CHECKING:
    from tasks.stores.registry import RegisteredVersion

_LATE_MINUTES = 10
HEALTH_COLUMNS = ("process", "state", "")
STUCK_COLUMNS = ("study", "what", "why", "since")
QUARANTINE_COLUMNS = ("reason", "what", "study", "modality", "instances", "since")
PREDICTION_COLUMNS = ("study", "class", "found", "volume mL", "confidence", "version")


def overview(stores: Stores) -> list[tuple[str, Any]]:
    """What is there, in one glance."""
    catalog = stores.catalog
    modalities = _grouped(stores, VolumeRow.modality)
    splits = _grouped(stores, SplitRow.split)
    last = catalog.find(DecisionRow, order_by=DecisionRow.number.desc(), limit=1)
    judged = catalog.find(EvaluationRow, order_by=EvaluationRow.created_at.desc(), limit=1)
    return [
        ("home", stores.locations.home),
        *account_told(account(catalog)),
        ("studies taken in", catalog.count(StudyRow)),
        ("series", catalog.count(SeriesRow)),
        ("volumes", f"{sum(modalities.values())}  {_counts(modalities)}"),
        ("labels", f"{catalog.count(LabelRow)}  {_counts(_grouped(stores, LabelRow.source))}"),
        ("in quarantine", catalog.count(QuarantineRow, QuarantineRow.resolved_at.is_(None))),
        ("patients placed", f"{sum(splits.values())}  {_counts(splits)}"),
        ("datasets", catalog.count(DatasetRecord)),
        ("predictions", catalog.count(PredictionRow)),
        ("open alerts", alerts_told(open_alerts(catalog))),
        ("last evaluation", _evaluation(judged[0]) if judged else "none"),
        ("last decision", _decision(last[0]) if last else "none"),
    ]


def account_told(found: Account) -> list[tuple[str, Any]]:
    """What came in and how far it got: every study is in exactly one of the three."""
    parts = [("of the delivered", found.parts(DELIVERED)), ("of the waiting", found.parts(WAITING))]
    return [
        ("studies received", str(found)),
        *(part for part, number in zip(parts, (found.delivered, found.waiting), strict=True) if number),
        *([("instances received", f"{found.instances:,}")] if found.instances else []),
        *([("refused as they came", f"{found.unfiled:,} instances, in quarantine")] if found.unfiled else []),
    ]


def astray(stores: Stores, limit: int = 20) -> list[tuple[str, str]]:
    """Studies that the account cannot place, and those that wait for what will not come."""
    return [(_short(one.study), one.why) for one in strays(stores.catalog, limit)]


def stuck(stores: Stores, limit: int = 20) -> list[tuple[Any, ...]]:
    """What does not get on, and why: events and results that are not acknowledged, runs that failed or never began."""
    return [*_untold(stores, limit), *_unfinished(stores, limit), *_failed(stores, limit), *_refused(stores, limit)]


def _untold(stores: Stores, limit: int) -> list[tuple[Any, ...]]:
    waiting = (OutboxRow.done_at.is_(None), OutboxRow.error != "")
    rows = stores.catalog.find(OutboxRow, *waiting, order_by=OutboxRow.created_at, limit=limit)
    what = {"event": "not yet told to Prefect", "delivery": "not yet delivered"}
    return [(_short(_study_of(stores, r)), what[r.kind], r.error, _when(r.created_at)) for r in rows]


def _unfinished(stores: Stores, limit: int) -> list[tuple[Any, ...]]:
    late = now() - timedelta(minutes=_LATE_MINUTES)
    waiting = (StudyVersionRow.finished_at.is_(None), StudyVersionRow.completed_at < late)
    rows = stores.catalog.find(StudyVersionRow, *waiting, order_by=StudyVersionRow.completed_at, limit=limit)
    return [
        (
            _short(r.study),
            "analysis not finished",
            f"run {r.run} has it" if r.started_at else "no run has begun: does `arrivals` run?",
            _when(r.completed_at),
        )
        for r in rows
    ]


def _failed(stores: Stores, limit: int) -> list[tuple[Any, ...]]:
    bad = StudyVersionRow.outcome == "failed"
    rows = stores.catalog.find(StudyVersionRow, bad, order_by=StudyVersionRow.completed_at.desc(), limit=limit)
    return [(_short(r.study), r.outcome, r.detail, _when(r.completed_at)) for r in rows]


def _refused(stores: Stores, limit: int) -> list[tuple[Any, ...]]:
    rows = stores.catalog.find(DeliveryRow, REFUSED, order_by=DeliveryRow.created_at.desc(), limit=limit)
    return [
        (_short(r.study), f"refused by {r.destination}; mended? `nocturne resend`", r.detail, _when(r.created_at))
        for r in rows
    ]


def _study_of(stores: Stores, message: OutboxRow) -> str:
    if study := message.payload.get("study"):
        return str(study)
    row = stores.catalog.get(DeliveryRow, message.message)
    return row.study if row else message.message


def quarantine(stores: Stores, limit: int = 50) -> list[tuple[Any, ...]]:
    """What was set aside and why, the newest first."""
    rows = stores.catalog.find(
        QuarantineRow,
        QuarantineRow.resolved_at.is_(None),
        order_by=QuarantineRow.created_at.desc(),
        limit=limit,
    )
    return [
        (
            r.reason,
            f"{r.what}{f' — {r.hint}' if r.hint else ''}",
            _short(r.study or r.subject),
            r.modality,
            r.instances,
            _when(r.created_at),
        )
        for r in rows
    ]


def datasets(stores: Stores) -> list[tuple[Any, ...]]:
    """Every dataset with its patients and cases by split."""
    rows = stores.catalog.find(DatasetRecord, order_by=DatasetRecord.created_at)
    return [
        (
            r.dataset[:12],
            r.name,
            r.kind,
            ", ".join(r.classes),
            *[_split(r.counts, s) for s in ("train", "validation", "test")],
            _when(r.created_at),
        )
        for r in rows
    ]


def predictions_told(stores: Stores, keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """One row per class of each prediction."""
    told: list[tuple[Any, ...]] = []
    for key in keys:
        row = stores.catalog.get(PredictionRow, key)
        volume = stores.catalog.get(VolumeRow, row.volume) if row else None
        package = stores.catalog.get(PackageRow, row.package) if row else None
        for finding in row.result["findings"] if row else ():
            size = "" if finding["volume_ml"] is None else f"{finding['volume_ml']:.1f}"
            place = _short(volume.study) if volume else ""
            told.append(
                (
                    place,
                    finding["class_name"],
                    "yes" if finding["called"] else "no",
                    size,
                    f"{finding['confidence']:.3f}",
                    (package.version if package else None) or "",
                )
            )
    return told


def models(stores: Stores) -> list[tuple[Any, ...]]:
    """Every model with the versions that serve and want to serve."""
    rows = []
    for name in stores.registry.names():
        versions = stores.registry.versions(name)
        named = {alias: v.version for v in versions for alias in v.aliases}
        rows.append((name, len(versions), named.get("champion", "none"), named.get("challenger", "none")))
    return rows


def versions(found: Sequence[RegisteredVersion]) -> list[tuple[Any, ...]]:
    """A model's versions, the newest first, with their primary figures."""
    return [
        (v.version, ", ".join(v.aliases), v.package[:12], _figure(v.metrics), _when(v.created) if v.created else "")
        for v in found
    ]


def decisions(rows: Sequence[DecisionRow]) -> list[tuple[Any, ...]]:
    """The audit trail."""
    return [
        (_when(r.created_at), r.action, r.version, r.before or "none", r.who, "; ".join(map(str, r.reasons)))
        for r in rows
    ]


def _grouped(stores: Stores, column: Any) -> dict[str, int]:
    with stores.catalog.reading() as session:
        return {str(value): n for value, n in session.execute(select(column, func.count()).group_by(column))}


def _counts(groups: dict[str, int]) -> str:
    return f"({', '.join(f'{n} {value}' for value, n in sorted(groups.items()))})" if groups else ""


def _split(counts: dict[str, Any], split: str) -> str:
    patients, cases = counts.get(split, (0, 0))
    return f"{patients} patients, {cases} cases"


def _evaluation(row: EvaluationRow) -> str:
    interval = f" [{row.low:.3f}, {row.high:.3f}]" if row.low is not None and row.high is not None else ""
    return f"{row.metric} {row.value:.3f}{interval}, package {row.package[:12]}, {_when(row.created_at)}"


def _decision(row: DecisionRow) -> str:
    return f"{row.name} {row.version} {row.action}: {'; '.join(map(str, row.reasons))} ({_when(row.created_at)})"


def _figure(metrics: Any) -> str:
    for name in ("dice", "auc"):
        if name in metrics:
            return f"{name} {metrics[name]:.4f}"
    return ""


def _short(identifier: str) -> str:
    return identifier if len(identifier) <= 16 else f"…{identifier[-12:]}"


def _when(moment: Any) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"
