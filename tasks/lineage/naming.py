"""From what a person types to a node: a key or its beginning, a UID as in the PACS or its pseudonym, a model's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from sqlalchemy import ColumnElement, SQLColumnExpression, String, cast, select

from models.errors import HeaderError, NotFoundError
from models.lineage import NodeKind, NodeName
from tasks.lineage.reading import Reader
from tasks.stores.results import label_of
from tasks.stores.tables import (
    AlertRow,
    AnalysisRow,
    CorrectionRow,
    DatasetRecord,
    DecisionRow,
    DeliveryRow,
    EvaluationRow,
    InstanceRow,
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

SHORTEST_PREFIX: Final = 4
_CANDIDATES: Final = 10
_UID: Final = re.compile(r"[0-2](\.[0-9]+){2,}")

_KEYS: Final[tuple[tuple[NodeKind, SQLColumnExpression[Any], SQLColumnExpression[Any]], ...]] = (
    ("package", PackageRow.package, PackageRow.package),
    ("dataset", DatasetRecord.dataset, DatasetRecord.dataset),
    ("plan", PlanRow.plan, PlanRow.plan),
    ("evaluation", EvaluationRow.evaluation, EvaluationRow.evaluation),
    ("analysis", AnalysisRow.analysis, AnalysisRow.analysis),
    ("prediction", PredictionRow.prediction, PredictionRow.prediction),
    ("correction", CorrectionRow.correction, CorrectionRow.correction),
    ("label", LabelRow.label, LabelRow.label),
    ("volume", VolumeRow.volume, VolumeRow.volume),
    ("delivery", DeliveryRow.delivery, DeliveryRow.delivery),
    ("version", StudyVersionRow.version, StudyVersionRow.version),
    ("alert", AlertRow.alert, AlertRow.alert),
    ("series", SeriesRow.series, SeriesRow.series_uid),  # the key of one reception
    ("series", SeriesRow.series_uid, SeriesRow.series_uid),
    ("study", StudyRow.study, StudyRow.study),
    ("study", StudyVersionRow.study, StudyVersionRow.study),
    ("patient", StudyRow.patient, StudyRow.patient),
    ("patient", SplitRow.patient, SplitRow.patient),
)
"""A kind, the column that is searched, and the one that names the node."""


def find(reader: Reader, what: str) -> NodeName:
    """The one node that `what` names.

    Raises NotFoundError where there is none, and (`ambiguous`) where the beginning of a key fits several.
    """
    asked = what.strip()
    for way in (_model, _exact, _object, _patient, _prefix):
        found = list(dict.fromkeys(way(reader, asked)))
        if len(found) == 1:
            return found[0]
        if found:
            raise _ambiguous(found)
    raise NotFoundError(
        "nothing of this name is known",
        hint="give a key or its beginning, a UID as in the PACS or its pseudonym, or a model as name or name/version",
    )


def _model(reader: Reader, asked: str) -> Iterator[NodeName]:
    """`name`, `name/2` or `name/champion`; a name alone means the version that serves, else the newest."""
    name, _, version = asked.partition("/")
    if not (known := reader.catalog.find(PackageRow, PackageRow.name == name, order_by=PackageRow.created_at.desc())):
        return
    chosen = [row.package for row in known if row.version == version]
    if not chosen and not version.isdecimal():
        chosen = _serving(reader, name, version or "champion") or ([] if version else [known[0].package])
    if not chosen:
        there = sorted({row.version for row in known if row.version}, key=lambda v: (len(v), v))
        raise NotFoundError(
            f"model {name} has no version {version!r}",
            where=name,
            hint=f"there are {', '.join(there) or 'none that are registered'}; see `nocturne models show {name}`",
        )
    yield NodeName(kind="package", key=chosen[0])


def _serving(reader: Reader, name: str, alias: str) -> list[str]:
    """The package of the version that the registry calls so, if any."""
    try:
        found = reader.stores.registry.versions(name)
    except NotFoundError:
        return []
    return [version.package for version in found if alias in version.aliases and version.package]


def _exact(reader: Reader, asked: str) -> Iterator[NodeName]:
    """A key, a pseudonym, or a UID as in the PACS."""
    for text in _spellings(reader, asked):
        yield from _search(reader, lambda column, text=text: column == text)  # type: ignore[misc]


def _object(reader: Reader, asked: str) -> Iterator[NodeName]:
    """What was delivered, what became a label, or an image of a series; a decision by its number."""
    for uid in _spellings(reader, asked):
        listed = cast(DeliveryRow.objects, String).contains(f'"{uid}"', autoescape=True)
        if reader.catalog.find(DeliveryRow, listed, limit=1):
            yield NodeName(kind="object", key=uid)
        elif (label := label_of(reader.stores.vault, uid)) is not None:
            yield NodeName(kind="label", key=label)
        else:
            for instance in reader.catalog.find(InstanceRow, InstanceRow.sop_uid == uid, limit=1):
                known = reader.catalog.count(SeriesRow, SeriesRow.series_uid == instance.series_uid)
                yield (
                    NodeName(kind="series", key=instance.series_uid)
                    if known
                    else NodeName(kind="study", key=instance.study)
                )
    if asked.isdecimal() and reader.catalog.get(DecisionRow, int(asked)):
        yield NodeName(kind="decision", key=str(int(asked)))


def _patient(reader: Reader, asked: str) -> Iterator[NodeName]:
    """A patient's ID as in the PACS."""
    try:
        pseudonym = reader.stores.pseudonymizer.patient(asked)
    except HeaderError:
        return
    if reader.catalog.count(StudyRow, StudyRow.patient == pseudonym):
        yield NodeName(kind="patient", key=pseudonym)


def _prefix(reader: Reader, asked: str) -> Iterator[NodeName]:
    """What begins so. By comparison, which an index answers."""
    if len(asked) >= SHORTEST_PREFIX:
        found = _search(reader, lambda column: column.between(asked, asked + "z"))
        yield from (name for name in found if name.key.startswith(asked) or name.kind == "series")


def _search(reader: Reader, meets: Callable[[SQLColumnExpression[Any]], ColumnElement[bool]]) -> Iterator[NodeName]:
    with reader.catalog.reading() as session:
        for kind, column, name in _KEYS:
            for key in session.scalars(select(name).where(meets(column)).distinct().limit(_CANDIDATES)):
                yield NodeName(kind=kind, key=str(key))


def _spellings(reader: Reader, asked: str) -> Iterable[str]:
    """As it is, and as a UID's pseudonym."""
    return (asked, reader.stores.pseudonymizer.uid(asked)) if _UID.fullmatch(asked) else (asked,)


def _ambiguous(found: list[NodeName]) -> NotFoundError:
    told = ", ".join(f"{name.kind} {name.key}" for name in found[:_CANDIDATES])
    more = ", …" if len(found) > _CANDIDATES else ""
    return NotFoundError(f"it fits several: {told}{more}", hint="give more of the key", reason="ambiguous")
