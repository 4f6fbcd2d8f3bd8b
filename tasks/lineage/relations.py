"""What leads to what. A relation answers for many nodes in one query, in either direction.

Most are two columns of one table. The rest lie in files or lists: what a dataset holds, what an analysis and a
delivery consist of, which plan and which other packages a package was made by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, SQLColumnExpression, String, cast, func, select

from models.lineage import Direction, NodeKind
from tasks.lineage.reading import Reader
from tasks.stores.catalog import by_parts
from tasks.stores.tables import (
    AlertRow,
    AnalysisRow,
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
    StudyRow,
    StudyVersionRow,
    VolumeRow,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A node's nearest of one kind, the newest first, and how many there are in all."""

    key: str
    nearest: tuple[str, ...]
    total: int


class Relation(Protocol):
    """Nodes of the kind `up` lead to nodes of the kind `down`."""

    @property
    def up(self) -> NodeKind: ...

    @property
    def down(self) -> NodeKind: ...

    def find(self, reader: Reader, keys: Sequence[str], way: Direction, limit: int | None) -> Iterable[Found]:
        """The nearest of these nodes, at most `limit` of each."""
        ...


@dataclass(frozen=True)
class Columns:
    """Two columns of one table."""

    up: NodeKind
    down: NodeKind
    upper: SQLColumnExpression[Any]
    lower: SQLColumnExpression[Any]
    newest: SQLColumnExpression[Any]
    where: tuple[ColumnElement[bool], ...] = ()

    def find(self, reader: Reader, keys: Sequence[str], way: Direction, limit: int | None) -> Iterator[Found]:
        """Counted and ranked where the rows are: of ten thousand only `limit` are fetched."""
        for part in by_parts(keys):
            yield from self._part(reader, part, way, limit)

    def _part(self, reader: Reader, keys: Sequence[str], way: Direction, limit: int | None) -> Iterator[Found]:
        mine, other = (self.lower, self.upper) if way == "up" else (self.upper, self.lower)
        pairs = (
            select(mine.label("mine"), other.label("other"), func.max(self.newest).label("moment"))
            .where(mine.in_(keys), other.is_not(None), *self.where)
            .group_by(mine, other)
            .subquery()
        )
        place = func.row_number().over(partition_by=pairs.c.mine, order_by=(pairs.c.moment.desc(), pairs.c.other))
        total = func.count().over(partition_by=pairs.c.mine)
        ranked = select(pairs.c.mine, pairs.c.other, place.label("place"), total.label("total")).subquery()
        query = select(ranked).order_by(ranked.c.mine, ranked.c.place)
        if limit is not None:
            query = query.where(ranked.c.place <= limit)
        found: dict[str, list[str]] = defaultdict(list)
        totals: dict[str, int] = {}
        with reader.catalog.reading() as session:
            for key, nearest, _, count in session.execute(query):
                found[key].append(nearest)
                totals[key] = count
        yield from (Found(key, tuple(nearest), totals[key]) for key, nearest in found.items())


Pairs = Callable[[Reader, Sequence[str]], Iterable[tuple[str, str]]]
"""(a node of these, one of its nearest), in order."""


@dataclass(frozen=True)
class Listed:
    """What is no column: a function for each direction."""

    up: NodeKind
    down: NodeKind
    upwards: Pairs
    downwards: Pairs

    def find(self, reader: Reader, keys: Sequence[str], way: Direction, limit: int | None) -> Iterator[Found]:
        """Each once."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for key, nearest in (self.upwards if way == "up" else self.downwards)(reader, keys):
            found[key][nearest] = None
        for key, all_of_it in found.items():
            yield Found(key, tuple(all_of_it)[:limit], len(all_of_it))


# -- datasets -----------------------------------------------------------------------------------------------------


def _held(place: int) -> Pairs:
    """The volumes (0) or labels (1) of datasets."""

    def pairs(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
        for dataset in keys:
            yield from ((dataset, key) for key in sorted(reader.members(dataset)[place]))

    return pairs


def _holding(place: int) -> Pairs:
    """The datasets that hold volumes (0) or labels (1): only their manifests know."""

    def pairs(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
        wanted = frozenset(keys)
        newest = DatasetRecord.created_at.desc()
        for record in reader.catalog.find(DatasetRecord, order_by=newest, limit=reader.files):
            yield from ((key, record.dataset) for key in sorted(wanted & reader.members(record.dataset)[place]))

    return pairs


# -- packages -----------------------------------------------------------------------------------------------------


def _plans(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of packages: plans of the same dataset and recipe."""
    return _planned(reader, PackageRow.package, keys)


def _planned_packages(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of plans: packages of the same dataset and recipe."""
    return ((plan, package) for package, plan in _planned(reader, PlanRow.plan, keys))


def _planned(reader: Reader, where: Any, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    for part in by_parts(keys):
        query = (
            select(PackageRow.package, PlanRow.plan, PlanRow.document["recipe"].as_string())
            .join(PlanRow, PlanRow.dataset == PackageRow.dataset)
            .where(where.in_(part))
            .order_by(PackageRow.created_at.desc(), PlanRow.created_at.desc())
        )
        with reader.catalog.reading() as session:
            rows = session.execute(query).all()
        yield from ((package, plan) for package, plan, recipe in rows if reader.described(package).recipe == recipe)


def _origins(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of packages: those that their weights began from, or that they were put together from."""
    named = {key: reader.described(key).origins for key in keys}
    every = sorted(frozenset[str]().union(*named.values()))
    # A digest of a file of weights is no package.
    known = {key for key, _ in _columns(reader, PackageRow.package, PackageRow.name, PackageRow.package, every)}
    yield from ((key, origin) for key, origins in named.items() for origin in sorted(origins & known))


def _offspring(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    wanted = frozenset(keys)
    for row in reader.catalog.find(PackageRow, order_by=PackageRow.created_at.desc(), limit=reader.files):
        yield from ((origin, row.package) for origin in sorted(wanted & reader.described(row.package).origins))


# -- results ------------------------------------------------------------------------------------------------------


def _analyses(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of predictions: the analyses of their studies that list them."""
    for part in by_parts(keys):
        query = (
            select(PredictionRow.prediction, AnalysisRow.analysis, AnalysisRow.predictions)
            .join(VolumeRow, VolumeRow.volume == PredictionRow.volume)
            .join(AnalysisRow, (AnalysisRow.study == VolumeRow.study) & (AnalysisRow.package == PredictionRow.package))
            .where(PredictionRow.prediction.in_(part))
            .order_by(AnalysisRow.created_at.desc())
        )
        with reader.catalog.reading() as session:
            for prediction, analysis, listed in session.execute(query):
                if prediction in listed:
                    yield prediction, analysis


def _predictions(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    for analysis, listed in _columns(reader, AnalysisRow.analysis, AnalysisRow.predictions, AnalysisRow.analysis, keys):
        yield from ((analysis, str(prediction)) for prediction in listed)


def _objects(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of deliveries: what they consist of."""
    for delivery, objects in _columns(reader, DeliveryRow.delivery, DeliveryRow.objects, DeliveryRow.delivery, keys):
        for item in objects:
            reader.objects[str(item["uid"])] = dict(item)
            yield delivery, str(item["uid"])


def _deliveries(reader: Reader, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of objects: the deliveries that list them. A single object is asked for: the one that a question begins with."""
    for uid in keys:
        listing = cast(DeliveryRow.objects, String).contains(f'"{uid}"', autoescape=True)
        for row in reader.catalog.find(DeliveryRow, listing, order_by=DeliveryRow.created_at.desc()):
            reader.objects |= {str(item["uid"]): dict(item) for item in row.objects}
            yield uid, row.delivery


def _columns(reader: Reader, first: Any, second: Any, where: Any, keys: Collection[str]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for part in by_parts(sorted(keys)):
        with reader.catalog.reading() as session:
            found += [(str(a), b) for a, b in session.execute(select(first, second).where(where.in_(part)))]
    return found


_TABLE = LabelRow.source == "CSV"
_NO_SERIES, _NO_STUDY = LabelRow.series_uid.is_(None), LabelRow.study.is_(None)
_DECISION = cast(DecisionRow.number, String)

RELATIONS: Final[tuple[Relation, ...]] = (
    Columns("patient", "study", StudyRow.patient, StudyRow.study, StudyRow.created_at),
    Columns("study", "series", SeriesRow.study, SeriesRow.series_uid, SeriesRow.created_at),
    Columns("series", "volume", VolumeRow.series_uid, VolumeRow.volume, VolumeRow.created_at),
    Columns("volume", "label", LabelRow.volume, LabelRow.label, LabelRow.created_at),
    Columns("series", "label", LabelRow.series_uid, LabelRow.label, LabelRow.created_at, (_TABLE,)),
    Columns("study", "label", LabelRow.study, LabelRow.label, LabelRow.created_at, (_TABLE, _NO_SERIES)),
    Columns("patient", "label", LabelRow.patient, LabelRow.label, LabelRow.created_at, (_TABLE, _NO_SERIES, _NO_STUDY)),
    Columns("study", "version", StudyVersionRow.study, StudyVersionRow.version, StudyVersionRow.completed_at),
    Listed("volume", "dataset", _held(0), _holding(0)),
    Listed("label", "dataset", _held(1), _holding(1)),
    Columns("dataset", "plan", PlanRow.dataset, PlanRow.plan, PlanRow.created_at),
    Columns("dataset", "package", PackageRow.dataset, PackageRow.package, PackageRow.created_at),
    Listed("plan", "package", _plans, _planned_packages),
    Listed("package", "package", _origins, _offspring),
    Columns("package", "evaluation", EvaluationRow.package, EvaluationRow.evaluation, EvaluationRow.created_at),
    Columns("dataset", "evaluation", EvaluationRow.dataset, EvaluationRow.evaluation, EvaluationRow.created_at),
    Columns("package", "decision", DecisionRow.package, _DECISION, DecisionRow.created_at),
    Columns("evaluation", "decision", DecisionRow.evaluation, _DECISION, DecisionRow.created_at),
    Columns("package", "alert", AlertRow.package, AlertRow.alert, AlertRow.created_at),
    Columns("volume", "prediction", PredictionRow.volume, PredictionRow.prediction, PredictionRow.created_at),
    Columns("package", "prediction", PredictionRow.package, PredictionRow.prediction, PredictionRow.created_at),
    Columns("version", "analysis", AnalysisRow.version, AnalysisRow.analysis, AnalysisRow.created_at),
    Columns("package", "analysis", AnalysisRow.package, AnalysisRow.analysis, AnalysisRow.created_at),
    Listed("prediction", "analysis", _predictions, _analyses),
    Columns("analysis", "delivery", DeliveryRow.analysis, DeliveryRow.delivery, DeliveryRow.created_at),
    Listed("delivery", "object", _deliveries, _objects),
    Columns("prediction", "correction", CorrectionRow.prediction, CorrectionRow.correction, CorrectionRow.created_at),
    Columns("label", "correction", CorrectionRow.label, CorrectionRow.correction, CorrectionRow.created_at),
    Columns(
        "prediction",
        "label",
        CorrectionRow.prediction,
        CorrectionRow.label,
        CorrectionRow.created_at,
        (CorrectionRow.how == "referenced",),
    ),
)
"""A label that names our own result was made from it."""
