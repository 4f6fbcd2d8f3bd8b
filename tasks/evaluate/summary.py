"""The report on one evaluation, gathered from the stores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select

from models.assembly import assemble
from models.dataset import Dataset
from models.evaluation import Comparison, Evaluation
from models.hashing import content_key
from models.package import ModelPackage
from models.plan import Outlier
from models.recipe import Images
from models.refs import EvaluationRef
from models.registration import Registered
from models.report import FORMAT, Alert, Check, Decision, Exclusion
from tasks.evaluate.reporting.compose import Judged, compose
from tasks.evaluate.reporting.page import render
from tasks.evaluate.run import compare
from tasks.stores.alerts import open_alerts
from tasks.stores.catalog import by_parts
from tasks.stores.evaluations import REPORT_FILE
from tasks.stores.house import Stores
from tasks.stores.meant import OTHERWISE, described_otherwise, meant_volumes
from tasks.stores.packages import read_description
from tasks.stores.tables import (
    DatasetRecord,
    DecisionRow,
    EvaluationRow,
    PackageRow,
    PredictionRow,
    QuarantineRow,
    VolumeRow,
)

_NAMED = 3  # unusual cases; all are in the package's fingerprint


def write(
    stores: Stores,
    ref: EvaluationRef,
    champion: EvaluationRef | None,
    registered: Registered,
    without: EvaluationRef | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """The HTML file, with the same as JSON and the cases as Parquet beside it.

    Written once per evaluation, champion, decision, and evaluation without made images. The `comparison` with the
    champion is made here where it is not given.
    """
    decision = _decision(stores, ref, registered)
    told = [registered.action, list(registered.reasons), decision.number]
    others = [other.key if other else None for other in (champion, without)]
    key = content_key("report", FORMAT, ref.key, *others, told)
    if stores.evaluations.place.exists(key):
        return stores.evaluations.place.local(key) / REPORT_FILE
    judged = _judged(stores, ref, champion, registered, without, comparison, decision)
    report, pictures = compose(judged)
    return stores.evaluations.write_report(key, render(report, pictures), report, stores.evaluations.cases(ref.key))


def _judged(
    stores: Stores,
    ref: EvaluationRef,
    champion: EvaluationRef | None,
    registered: Registered,
    without: EvaluationRef | None,
    comparison: Comparison | None,
    decision: Decision,
) -> Judged:
    evaluation = stores.evaluations.read(ref.key)
    row = stores.catalog.get(EvaluationRow, ref.key)
    package, dataset = _package(stores, evaluation), stores.datasets.read(evaluation.dataset)
    before = champion if champion != ref else None
    return Judged(
        evaluation=evaluation,
        created_at=row.created_at if row else datetime.now(UTC),
        package=package,
        champion=_package(stores, stores.evaluations.read(before.key)) if before else None,
        dataset=dataset,
        decision=decision,
        comparison=(comparison or compare(stores, before, ref)) if before else None,
        without=compare(stores, without, ref) if without else None,
        cases=stores.evaluations.cases(ref.key),
        characteristics=_characteristics(stores, dataset),
        exclusions=(*_left_out(stores, package.recipe.images, dataset, evaluation.dataset), *_set_aside(stores)),
        alerts=_alerts(stores, registered.name),
        watched=_watched(stores, registered.name),
        pictures=stores.evaluations.pictures(ref.key),
        notes=_unusual(package),
        provenance=(("registered as", f"{registered.name} version {registered.version}"),),
    )


def _characteristics(stores: Stores, dataset: Dataset) -> dict[str, dict[str, str]]:
    """Of the dataset's images, as far as the catalog has kept them."""
    asked = select(VolumeRow.volume, VolumeRow.characteristics)
    with stores.catalog.reading() as session:
        parts = (asked.where(VolumeRow.volume.in_(keys)) for keys in by_parts(row.volume for row in dataset.rows))
        return {volume: _texts(told or {}) for part in parts for volume, told in session.execute(part)}


def _package(stores: Stores, evaluation: Evaluation) -> ModelPackage:
    """The package that was judged."""
    return read_description(stores.packages.local(evaluation.package))


def _decision(stores: Stores, ref: EvaluationRef, registered: Registered) -> Decision:
    """As it stands in the audit trail; from the registration alone where the trail does not hold it."""
    rows = stores.catalog.find(
        DecisionRow,
        DecisionRow.name == registered.name,
        DecisionRow.package == registered.package.key,
        DecisionRow.evaluation == stores.evaluations.read(ref.key).digest,
        order_by=DecisionRow.number,
    )
    same = [row for row in rows if row.action == registered.action and tuple(row.reasons) == registered.reasons]
    if not same:
        return Decision(verdict=registered.action, reasons=registered.reasons)
    row = same[-1]
    return Decision(
        verdict=registered.action,
        reasons=registered.reasons,
        checks=tuple(Check.model_validate(check) for check in row.figures.get("checks", ())),
        who=row.who,
        number=row.number,
        decided_at=row.created_at,
    )


_MEANINGS = {
    "no-usable-label": "no label that the recipe means",
    "other-description": "its description does not fit the recipe",
    "colour": "a colour image, which the recipe does not mean",
    "too-few-slices": "fewer slices than the recipe asks for",
    "slices-too-thick": "thicker slices than the recipe allows",
    "fits-several-channels": "it fits several of the recipe's channels",
    "other-series-taken": "another series of its study was taken",
    "other-frame-of-reference": "its study's other channels lie in another frame of reference",
    "no-case-of-its-study": "its study has no complete case",
}


def _left_out(stores: Stores, images: Images, dataset: Dataset, key: str) -> Iterator[Exclusion]:
    """Images of the recipe's modalities that are no case of the dataset though they were there then, by reason."""
    made = stores.catalog.get(DatasetRecord, key)
    known = [VolumeRow.created_at <= made.created_at] if made else []
    with stores.catalog.reading() as session:
        cases, left = assemble(images, meant_volumes(session, images, *known))
        otherwise = sum(1 for _ in described_otherwise(session, images, *known))
    used = {volume for row in dataset.rows for volume in (row.volume, *row.channels)} | {""}
    meant = {volume for case in cases for volume in (case.reference.volume, *case.channels)}
    counts = Counter(one.reason for one in left if one.volume not in used)
    counts["no-usable-label"] += len(meant - used)
    counts[OTHERWISE] += otherwise
    counts.pop("other-modality", None)
    for reason, count in sorted((+counts).items()):
        yield Exclusion(subject="images", reason=reason, count=count, meaning=_MEANINGS.get(reason, ""))


def _set_aside(stores: Stores) -> Iterator[Exclusion]:
    """What lies in quarantine, by stage and reason, with one example's words."""
    rows = stores.catalog.find(QuarantineRow, QuarantineRow.resolved_at.is_(None))
    counts = Counter((row.stage, row.reason) for row in rows)
    meaning = {(row.stage, row.reason): row.what for row in rows}
    for (stage, reason), count in sorted(counts.items()):
        yield Exclusion(subject=stage, reason=reason, count=count, meaning=meaning[stage, reason])


def _alerts(stores: Stores, name: str) -> tuple[Alert, ...]:
    """What has moved and not moved back, the newest first."""
    return tuple(
        Alert(
            kind=row.kind,
            measure=row.measure,
            how=row.how,
            value=row.value,
            threshold=row.threshold,
            cases=row.cases,
            told=row.told,
            package=row.package,
            since=row.created_at,
        )
        for row in reversed(open_alerts(stores.catalog, name))
    )


def _watched(stores: Stores, name: str) -> int:
    """How many predictions of the model's versions are kept."""
    versions = select(PackageRow.package).where(PackageRow.name == name)
    return stores.catalog.count(PredictionRow, PredictionRow.package.in_(versions))


def _unusual(package: ModelPackage) -> tuple[str, ...]:
    """Training cases far from the rest, as the recipe's outlier check found them: they were used all the same."""
    by_measure: dict[str, list[Outlier]] = defaultdict(list)
    for outlier in package.fingerprint.get("outliers", ()):
        found = Outlier.model_validate(outlier)
        by_measure[found.measure].append(found)
    return tuple(_told_of(measure, found) for measure, found in by_measure.items())


def _told_of(measure: str, found: Sequence[Outlier]) -> str:
    values = sorted({f"{outlier.value:.4g}" for outlier in found}, key=float)
    span = " to ".join(dict.fromkeys((values[0], values[-1])))
    named = ", ".join(outlier.volume[:12] for outlier in found[:_NAMED]) + (", …" if len(found) > _NAMED else "")
    cases = f"unusual training case{'s' * (len(found) > 1)}: {measure}"
    return f"{len(found)} {cases} {span}, others {found[0].expected} ({named})"


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items() if value is not None}
