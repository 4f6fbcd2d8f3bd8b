"""What is told of a node: a title and facts, for many nodes of one kind in one query. No identity is among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from models.lineage import Fact, NodeKind
from tasks.lineage.reading import Reader
from tasks.stores.tables import (
    AlertRow,
    AnalysisRow,
    Base,
    CorrectionRow,
    DatasetRecord,
    DecisionRow,
    DeliveryRow,
    EvaluationRow,
    LabelRow,
    PackageRow,
    PlanRow,
    PredictionRow,
    SeriesRow,
    SplitRow,
    StudyRow,
    StudyVersionRow,
    VolumeRow,
)


@dataclass(frozen=True, slots=True)
class Told:
    """A title for people, and plain values."""

    title: str
    facts: dict[str, Fact]


@dataclass(frozen=True)
class Table:
    """Where a kind's rows are, by which column (whose values are `of` a type), and what is told of a row."""

    row: type[Base]
    key: str
    tell: Callable[[Any], Told]
    newest: Any = None
    of: Callable[[str], str | int] = str

    def told(self, reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, Told]]:
        """Of those that have a row; of several, the newest's."""
        column = getattr(self.row, self.key)
        for row in reader.catalog.among(self.row, column, map(self.of, keys), order_by=self.newest):
            yield str(getattr(row, self.key)), self.tell(row)


def tell(reader: Reader, kind: NodeKind, keys: Sequence[str]) -> dict[str, Told]:
    """Of every one of these nodes; a node without a row of its own is told of by its kind."""
    told = {key: _untold(reader, kind, key) for key in keys}
    table = TABLES.get(kind)
    return told | dict(table.told(reader, keys)) if table else told


def _untold(reader: Reader, kind: NodeKind, key: str) -> Told:
    if kind == "object":
        what = str(reader.objects.get(key, {}).get("kind", "")).upper()
        return Told(f"{what} in the PACS" if what else "object", {"object": what} if what else {})
    return Told({"volume": "made image", "patient": "patient"}.get(kind, kind), {})


def _patient(row: SplitRow) -> Told:
    return Told(f"patient in {row.split}", {"split": row.split, "origin": row.origin})


def _study(row: StudyRow) -> Told:
    return Told("study", {"date": row.study_date, **_at(row.created_at)})


def _series(row: SeriesRow) -> Told:
    facts: dict[str, Fact] = {"modality": row.modality, "description": row.description, "instances": row.instances}
    return Told(f"{row.modality} series {row.description}".strip(), facts | _at(row.created_at))


def _volume(row: VolumeRow) -> Told:
    size = f"{row.shape_z} × {row.shape_y} × {row.shape_x}"
    spacing = f"{row.spacing_z:.3g} × {row.spacing_y:.3g} × {row.spacing_x:.3g} mm"
    facts: dict[str, Fact] = {"modality": row.modality, "size": size, "spacing": spacing}
    facts |= {"manufacturer": row.manufacturer, "scanner": row.model_name}
    return Told(f"{row.modality} {size}", facts | _at(row.created_at))


def _label(row: LabelRow) -> Told:
    names = ", ".join(str(segment["name"]) for segment in row.segments) or (row.value or "")
    facts: dict[str, Fact] = {"source": row.source, "shows": names, "set": row.name}
    return Told(f"{row.source} label: {names}", facts | _at(row.created_at))


def _version(row: StudyVersionRow) -> Told:
    facts: dict[str, Fact] = {"number": row.number, "instances": len(row.instances), "why": row.why}
    facts |= {"source": row.source, "outcome": row.outcome, "detail": row.detail}
    return Told(f"study version {row.number}: {row.outcome or 'on its way'}", facts | _at(row.completed_at))


def _dataset(row: DatasetRecord) -> Told:
    counts: dict[str, Fact] = {split: int(told[1]) for split, told in row.counts.items()}
    facts: dict[str, Fact] = {"recipe": row.name, "kind": row.kind, "classes": ", ".join(map(str, row.classes))}
    return Told(
        f"dataset of {row.name}, {sum(int(t[1]) for t in row.counts.values())} cases",
        facts | counts | _at(row.created_at),
    )


def _plan(row: PlanRow) -> Told:
    return Told("plan", {"recipe": str(row.document.get("recipe", "")), **_at(row.created_at)})


def _package(row: PackageRow) -> Told:
    facts: dict[str, Fact] = {"model": row.name, "version": row.version, "run": row.run, "weights": row.weights_sha256}
    version = f"version {row.version}" if row.version else "not registered"
    return Told(f"model {row.name}, {version}", facts | _at(row.created_at))


def _evaluation(row: EvaluationRow) -> Told:
    facts: dict[str, Fact] = {"metric": row.metric, "value": row.value, "low": row.low, "high": row.high}
    return Told(f"evaluation: {row.metric} {row.value:.3f}", facts | _at(row.created_at))


def _decision(row: DecisionRow) -> Told:
    facts: dict[str, Fact] = {"action": row.action, "version": row.version, "before": row.before, "who": row.who}
    facts |= {"reasons": "; ".join(map(str, row.reasons)), **_at(row.created_at)}
    return Told(f"{row.name} version {row.version} {row.action} by {row.who}", facts)


def _alert(row: AlertRow) -> Told:
    facts: dict[str, Fact] = {"kind": row.kind, "measure": row.measure, "value": row.value, "told": row.told}
    return Told(f"alert: {row.measure}", facts | _at(row.created_at))


def _prediction(row: PredictionRow) -> Told:
    called = [finding for finding in row.result.get("findings", ()) if finding.get("called")]
    found = ", ".join(str(finding["class_name"]) for finding in called)
    facts: dict[str, Fact] = {"found": found, "seconds": row.seconds, "uncertainty": row.uncertainty}
    return Told(f"prediction: {found or 'nothing found'}", facts | _at(row.created_at))


def _analysis(row: AnalysisRow) -> Told:
    facts: dict[str, Fact] = {"model": row.name, "version": row.model_version, "role": row.role, "outcome": row.outcome}
    told = f"analysis by {row.name} {row.model_version} ({row.role}): {row.outcome}"
    return Told(told, {**facts, "detail": row.detail, "seconds": row.seconds} | _at(row.created_at))


def _delivery(row: DeliveryRow) -> Told:
    facts: dict[str, Fact] = {"destination": row.destination, "state": row.state, "detail": row.detail}
    return Told(f"delivery to {row.destination}: {row.state}", facts | _at(row.created_at))


def _correction(row: CorrectionRow) -> Told:
    value = "" if row.value is None else f": {row.value:.3f}"
    return Told(f"correction, {row.how}{value}", {"how": row.how, "value": row.value, **_at(row.created_at)})


def _at(moment: datetime) -> dict[str, Fact]:
    return {"at": moment.isoformat(timespec="seconds")}


TABLES: Final[Mapping[NodeKind, Table]] = {
    "patient": Table(SplitRow, "patient", _patient),
    "study": Table(StudyRow, "study", _study),
    "series": Table(SeriesRow, "series_uid", _series, SeriesRow.created_at),
    "volume": Table(VolumeRow, "volume", _volume),
    "label": Table(LabelRow, "label", _label),
    "version": Table(StudyVersionRow, "version", _version),
    "dataset": Table(DatasetRecord, "dataset", _dataset),
    "plan": Table(PlanRow, "plan", _plan),
    "package": Table(PackageRow, "package", _package),
    "evaluation": Table(EvaluationRow, "evaluation", _evaluation),
    "decision": Table(DecisionRow, "number", _decision, of=int),
    "alert": Table(AlertRow, "alert", _alert),
    "prediction": Table(PredictionRow, "prediction", _prediction),
    "analysis": Table(AnalysisRow, "analysis", _analysis),
    "delivery": Table(DeliveryRow, "delivery", _delivery),
    "correction": Table(CorrectionRow, "correction", _correction),
}
