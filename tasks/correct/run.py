"""Corrections: a label that comes after a prediction says how good that was.

A segmentation that names our own object corrects it; any other label on the image corrects it where it came later
and speaks of what the model found. Doing it again finds it done: a correction is keyed by prediction and label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Literal

from sqlalchemy import select

from models.errors import BadInputError, IntegrityError, NocturneError, NotFoundError, PackageError
from models.hashing import content_key
from models.package import ModelPackage
from models.refs import CorrectionRef, LabelRef
from tasks.correct.judging import JUDGES
from tasks.correct.pairs import Pair, new_pairs, pairs_since
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.results import Returned, delivered_objects, returned_labels
from tasks.stores.tables import AnalysisRow, CorrectionRow, QuarantineRow, now

STAGE: Final = "correct"
BAD: Final = (BadInputError, IntegrityError, NotFoundError, PackageError)
"""What is wrong with one label, prediction or package, and with no other."""

_LOOKED: Final = "corrections"
_OVERLAP: Final = timedelta(days=1)
"""Rows are stamped before they are committed, and by several machines' clocks."""

How = Literal["referenced", "same-image"]


def correct(stores: Stores, labels: Sequence[LabelRef] | None = None) -> tuple[CorrectionRef, ...]:
    """Score what these labels correct, in the order in which they were made; returns what is new.

    None: all that came since all were last looked at, and those that were set aside. What cannot be scored is set
    aside with its reason, and the rest goes on.
    """
    if labels is not None:
        with stores.catalog.reading() as session:
            asked = list(new_pairs(session, sorted({ref.key for ref in labels})))
        return _scored(stores, asked)
    began, last = now(), stores.catalog.marked(_LOOKED)
    with stores.catalog.reading() as session:
        pairs = list(pairs_since(session, datetime.fromisoformat(last) - _OVERLAP if last else None))
        if last:
            still_open = (QuarantineRow.stage == STAGE, QuarantineRow.resolved_at.is_(None))
            aside = set(session.scalars(select(QuarantineRow.subject).where(*still_open)))
            pairs += new_pairs(session, sorted(aside))
    done = _scored(stores, pairs)
    stores.catalog.mark(_LOOKED, began.isoformat())
    return done


def _scored(stores: Stores, pairs: Sequence[Pair]) -> tuple[CorrectionRef, ...]:
    if not pairs:
        return ()
    told = returned_labels(stores.vault, {pair.label.label for pair in pairs})
    named = _named(stores, pairs, told)
    described = lru_cache(maxsize=64)(lambda key: read_description(stores.packages.local(key)))

    def order(pair: Pair) -> tuple[object, ...]:
        made = told.get(pair.label.label, Returned("")).made
        return made or f"{pair.label.created_at:%Y%m%d%H%M%S.%f}", pair.label.label, pair.prediction.prediction

    done: list[CorrectionRef] = []
    for pair in sorted(pairs, key=order):
        try:
            package = described(pair.prediction.package)
            how: How = "referenced" if (pair.label.label, pair.prediction.prediction) in named else "same-image"
            done += _corrected(stores, package, pair, how)
        except BAD as error:
            _set_aside(stores, pair, error)
    return tuple(done)


def _corrected(stores: Stores, package: ModelPackage, pair: Pair, how: How) -> Iterable[CorrectionRef]:
    """The correction, where the label is one."""
    judge = JUDGES.get(package.plan.kind)
    if judge is None or not judge.speaks(package, pair, referenced=how == "referenced"):
        return
    judged = judge.score(stores, package, pair)
    key = content_key("correction", pair.prediction.prediction, pair.label.label)
    row = CorrectionRow(
        correction=key,
        prediction=pair.prediction.prediction,
        label=pair.label.label,
        package=pair.prediction.package,
        how=how,
        scores=list(judged.scores),
        value=judged.value,
    )
    new = stores.catalog.add(row)
    mine = (
        QuarantineRow.stage == STAGE,
        QuarantineRow.subject == pair.label.label,
        QuarantineRow.resolved_at.is_(None),
    )
    stores.catalog.change(QuarantineRow, *mine, resolved_at=now())
    if new:
        yield CorrectionRef.to(key)


def _named(stores: Stores, pairs: Sequence[Pair], told: dict[str, Returned]) -> set[tuple[str, str]]:
    """(label, prediction) of labels that name an object in which we told of the prediction."""
    referring = {label: set(one.refers) for label, one in told.items() if one.refers}
    studies = {pair.study for pair in pairs if pair.label.label in referring}
    if not studies:
        return set()
    objects = delivered_objects(stores.catalog, studies)
    wanted = {objects[uid] for uids in referring.values() for uid in uids if uid in objects}
    rows = stores.catalog.among(AnalysisRow, AnalysisRow.analysis, wanted)
    said = {row.analysis: [str(key) for key in row.predictions] for row in rows}
    return {
        (label, prediction)
        for label, uids in referring.items()
        for uid in uids & objects.keys()
        for prediction in said.get(objects[uid], ())
    }


def _set_aside(stores: Stores, pair: Pair, error: NocturneError) -> None:
    stores.catalog.add(
        QuarantineRow(
            entry=content_key("quarantine", STAGE, pair.label.label, pair.prediction.prediction, error.reason),
            stage=STAGE,
            subject=pair.label.label,
            reason=error.reason,
            what=error.what,
            hint=error.hint or "",
            patient=pair.label.patient,
            study=pair.study,
            modality=pair.label.source,
        )
    )
