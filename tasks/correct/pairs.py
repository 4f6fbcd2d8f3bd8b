"""Which prediction a label may correct: one of the same image, made before it.

A mask's image is its volume. A table's class is said of a series, a study or a patient; of several of one set, the
narrowest counts for an image, as it does in a dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select
from sqlalchemy.orm import Session, aliased

from tasks.stores.catalog import by_parts
from tasks.stores.tables import CorrectionRow, LabelRow, PredictionRow, VolumeRow

_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Pair:
    """A label, a prediction that was there before it, and the pseudonymous study of the image of both."""

    label: LabelRow
    prediction: PredictionRow
    study: str


def new_pairs(session: Session, labels: Sequence[str]) -> Iterator[Pair]:
    """All of these labels that no correction is known of."""
    for part in by_parts(labels):
        yield from _found(session, LabelRow.label.in_(part))


def pairs_since(session: Session, moment: datetime | None) -> Iterator[Pair]:
    """All of labels that came after `moment` (None: of all) that no correction is known of."""
    for moments in _slices(session, moment):
        yield from _found(session, *moments)


def _slices(session: Session, since: datetime | None) -> Iterator[list[ColumnElement[bool]]]:
    """Stretches of time with about `_AT_ONCE` labels each: no statement takes long, however many came together."""
    moment = LabelRow.created_at
    while True:
        beyond = [] if since is None else [moment > since]
        until = session.scalar(select(moment).where(*beyond).order_by(moment).offset(_AT_ONCE).limit(1))
        if until is None:
            yield beyond
            return
        yield [*beyond, moment <= until]
        since = until


def _found(session: Session, *where: ColumnElement[bool]) -> Iterator[Pair]:
    for meets in (_mask(), _series(), _study(), _patient()):
        rows = session.execute(_pairs(meets).where(*where)).all()
        yield from (Pair(label, prediction, study) for label, prediction, study in rows)


def _pairs(meets: ColumnElement[bool]) -> Select[Any]:
    known = exists().where(CorrectionRow.prediction == PredictionRow.prediction, CorrectionRow.label == LabelRow.label)
    return (
        select(LabelRow, PredictionRow, VolumeRow.study)
        .select_from(LabelRow)
        .join(VolumeRow, meets)
        .join(PredictionRow, PredictionRow.volume == VolumeRow.volume)
        .where(PredictionRow.created_at < LabelRow.created_at, ~known)
        .order_by(LabelRow.created_at, LabelRow.label, PredictionRow.prediction)
    )


def _mask() -> ColumnElement[bool]:
    return and_(LabelRow.source != "CSV", VolumeRow.volume == LabelRow.volume)


def _series() -> ColumnElement[bool]:
    return and_(LabelRow.source == "CSV", VolumeRow.series_uid == LabelRow.series_uid)


def _study() -> ColumnElement[bool]:
    return and_(
        LabelRow.source == "CSV", LabelRow.series_uid.is_(None), VolumeRow.study == LabelRow.study, ~_narrower("series")
    )


def _patient() -> ColumnElement[bool]:
    alone = (LabelRow.series_uid.is_(None), LabelRow.study.is_(None), VolumeRow.patient == LabelRow.patient)
    return and_(LabelRow.source == "CSV", *alone, ~_narrower("series", "study"))


def _narrower(*than: str) -> ColumnElement[bool]:
    """Whether the same set says more narrowly what the image is of."""
    other = aliased(LabelRow)
    said = {
        "series": other.series_uid == VolumeRow.series_uid,
        "study": and_(other.series_uid.is_(None), other.study == VolumeRow.study),
    }
    same = (other.source == "CSV", other.name == LabelRow.name, other.patient == LabelRow.patient)
    return exists().where(*same, or_(*(said[one] for one in than)))
