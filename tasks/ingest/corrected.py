"""Labels in which somebody corrected a model: they count before what was said of their images before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.recipe import LabelClass, Labels, Recipe
from tasks.ingest.cases import Case, seen_classes
from tasks.stores.catalog import by_parts
from tasks.stores.tables import CorrectionRow, DatasetRecord, LabelRow, PackageRow


@dataclass(frozen=True, slots=True)
class Corrections:
    """Masks that corrected models of one name, each with the moment when it was told to be one; and those models'
    classes in lower case, the newest model's first. A table's later row replaces an earlier one anyway."""

    moments: Mapping[str, datetime]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, session: Session, recipe: Recipe) -> Self:
        """Those of the recipe's models."""
        if recipe.labels.source == "CSV":
            return cls({}, ())
        mine = PackageRow.name == recipe.name
        told = (
            select(CorrectionRow.label, func.min(CorrectionRow.created_at))
            .join(PackageRow, PackageRow.package == CorrectionRow.package)
            .where(mine)
            .group_by(CorrectionRow.label)
        )
        moments = {label: moment for label, moment in session.execute(told)}  # noqa: C416 - rows, not pairs
        known = (
            select(DatasetRecord.classes)
            .join(PackageRow, PackageRow.dataset == DatasetRecord.dataset)
            .where(mine)
            .order_by(PackageRow.created_at.desc(), PackageRow.package)
        )
        names = session.scalars(known).all() if moments else ()
        return cls(moments, tuple(dict.fromkeys(str(name).casefold() for told in names for name in told)))

    def of_other_kinds(self, session: Session, labels: Labels) -> Sequence[LabelRow]:
        """Those that came as another kind of object than the recipe's truth: a SEG where that was NIfTI, say."""
        other = select(LabelRow).where(LabelRow.source != labels.source, LabelRow.source != "CSV")
        parts = by_parts(sorted(self.moments))
        return [row for part in parts for row in session.scalars(other.where(LabelRow.label.in_(part)))]

    def seen_classes(self, labels: Labels, cases: Sequence[Case]) -> tuple[LabelClass, ...]:
        """As `cases.seen_classes`, but where some are corrected: the models' classes in their order, then others.

        Viewers number structures anew, and add some of their own: a correction makes no class and moves none.
        """
        original = [case for case in cases if case.label.label not in self.moments]
        if labels.classes or len(original) == len(cases):
            return seen_classes(labels, cases)
        known = {name: place for place, name in enumerate(self.classes)}
        first = {wanted.name.casefold(): place for place, wanted in enumerate(seen_classes(labels, original))}
        kept = [c for c in seen_classes(labels, cases) if c.name.casefold() in known.keys() | first.keys()]

        def order(wanted: LabelClass) -> tuple[int, int]:
            name = wanted.name.casefold()
            return known.get(name, len(known)), first.get(name, len(first))

        return tuple(sorted(kept, key=order))
