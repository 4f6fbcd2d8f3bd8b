"""Which studies a label would teach a model most about: those that it was unsure of, and those unlike what it learnt
from.

Both are told as a share, x/(x + usual): 0.5 is as usual, towards 1 lies what is extraordinary. What is usual is, of
uncertainty, the median of all that the model was shown; of novelty, how far training cases lie from their own middle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sqlalchemy import select

from models.assembly import assemble, current
from models.package import ModelPackage
from models.plan import CaseFacts, Plan
from models.recipe import LabelClass
from models.refs import PackageRef
from models.volume import Segment
from models.watching import Suggestion
from tasks.imaging.masks import belongs
from tasks.stores.catalog import in_parts
from tasks.stores.house import Stores
from tasks.stores.meant import meant_volumes
from tasks.stores.packages import read_description
from tasks.stores.tables import LabelRow, SplitRow, VolumeRow
from tasks.watch.inputs import MATTERS, contrast, grid_of, levels_of
from tasks.watch.seen import Predicted, predicted_cases, training_cases

FARTHEST: Final = 10.0
"""Robust standard deviations that count at most: one odd property must not hide all others."""
_TO_STD: Final = 1.4826
"""From the median absolute deviation to the standard deviation of a normal distribution."""
_ALIKE: Final = 0.25
"""Two studies whose properties lie this near each other, in robust standard deviations, teach much the same."""
_USUAL: Final = 1.0
"""Robust standard deviations of a training case, where there are too few to say."""
_AS_USUAL: Final = 0.5


def suggest(stores: Stores, name: str, package: PackageRef, count: int) -> tuple[Suggestion, ...]:
    """The `count` studies without a label that are worth one most, the best first; one a patient, and unlike each other
    as far as there are others.

    Patients who are kept for judging are left out: their labels teach nothing.
    """
    described = read_description(stores.packages.local(package.key))
    shown = {case.facts.volume: case for case in reversed(predicted_cases(stores, name))}
    found = _candidates(stores, described, shown)
    known = training_cases(stores, described)
    space = _Space.of([case.facts for case in known.cases] if known else [], described.plan)
    usual = float(np.median([c.uncertainty for c in shown.values() if c.uncertainty is not None] or [0.0]))
    ranked = sorted(
        (_ranked(one, space, usual) for one in found), key=lambda r: (-r.suggestion.score, r.suggestion.study)
    )
    chosen = _diverse(ranked, space, count)
    return tuple(sorted((one.suggestion for one in chosen), key=lambda s: (-s.score, s.study)))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An image of a study without a label; `uncertainty` is None where the model has not seen it."""

    patient: str
    study: str
    facts: CaseFacts
    uncertainty: float | None


@dataclass(frozen=True, slots=True)
class _Ranked:
    patient: str
    place: Mapping[str, float]
    suggestion: Suggestion


def _candidates(stores: Stores, package: ModelPackage, shown: Mapping[str, Predicted]) -> list[_Candidate]:
    images = package.recipe.images
    with stores.catalog.reading() as session:
        held_out = set(in_parts(session, select(SplitRow.patient).where(SplitRow.split != "train")))
        rows = current(meant_volumes(session, images))
    cases, _ = assemble(images, rows)
    labelled = _Labelled.read(stores, package)
    return [
        _Candidate(
            row.patient,
            row.study,
            seen.facts if (seen := shown.get(row.volume)) else _facts(row),
            seen.uncertainty if seen else None,
        )
        for row in (case.reference for case in cases)
        if row.patient not in held_out and not labelled.has(row)
    ]


def _facts(row: VolumeRow) -> CaseFacts:
    """What the catalog tells of an image that the model has not seen."""
    shape = (row.shape_z, row.shape_y, row.shape_x)
    spacing = (row.spacing_z, row.spacing_y, row.spacing_x)
    return CaseFacts(volume=row.volume, shape=shape, spacing=spacing, cropped_shape=shape, median=0.0, iqr=0.0)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """What has a label: by volume, by study, or of the patient as a whole."""

    volumes: frozenset[str]
    studies: frozenset[str]
    patients: frozenset[str]

    @classmethod
    def read(cls, stores: Stores, package: ModelPackage) -> _Labelled:
        """Labels of the kind that the model learns from: a mask of another organ is none, nor is another table."""
        asked = package.recipe.labels
        classes = asked.meaning(package.plan.classes)
        table = LabelRow.source == "CSV"
        found = stores.catalog.find(LabelRow, table if asked.source == "CSV" else ~table)
        rows = [row for row in found if _speaks(row, asked.name, classes)]
        return cls(
            frozenset(row.volume for row in rows if row.volume),
            frozenset(row.study for row in rows if row.study and not row.volume),
            frozenset(row.patient for row in rows if not (row.study or row.volume)),
        )

    def has(self, row: VolumeRow) -> bool:
        return row.volume in self.volumes or row.study in self.studies or row.patient in self.patients


def _speaks(row: LabelRow, name: str | None, classes: Sequence[LabelClass]) -> bool:
    if row.source == "CSV":
        return name in (None, row.name)
    segments = [Segment(int(s["number"]), str(s["name"]), s["code"]) for s in row.segments]
    return any(belongs(segment, wanted) for segment in segments for wanted in classes)


@dataclass(frozen=True, slots=True)
class _Space:
    """Properties of images in robust standard deviations of the training cases; (middle, deviation) by name."""

    plan: Plan
    axes: Mapping[str, tuple[float, float]]
    usual: float

    @classmethod
    def of(cls, cases: Sequence[CaseFacts], plan: Plan) -> _Space:
        values: dict[str, list[float]] = defaultdict(list)
        for facts in cases:
            for name, value in _properties(facts, plan).items():
                values[name].append(value)
        least = {name: MATTERS * width for name, width in contrast(cases, plan).items()}
        axes = {}
        for name, found in values.items():
            middle = float(np.median(found))
            spread = _TO_STD * float(np.median(np.abs(np.array(found) - middle)))
            axes[name] = (middle, max(spread, least.get(name, MATTERS), 1e-12))
        space = cls(plan, axes, _USUAL)
        distances = [_length(space.place(facts)) for facts in cases]
        return cls(plan, axes, float(np.median(distances)) or _USUAL) if distances else space

    def place(self, facts: CaseFacts) -> dict[str, float]:
        """Where an image lies, by property that training cases have too."""
        found = {}
        for name, value in _properties(facts, self.plan).items():
            if name in self.axes:
                middle, spread = self.axes[name]
                found[name] = float(np.clip((value - middle) / spread, -FARTHEST, FARTHEST))
        return found


def _properties(facts: CaseFacts, plan: Plan) -> dict[str, float]:
    """Spacings and sizes count by their factor."""
    return {name: float(np.log(value)) for name, value in grid_of(facts).items()} | levels_of(facts, plan)


def _ranked(one: _Candidate, space: _Space, usual: float) -> _Ranked:
    place = space.place(one.facts)
    novelty = _share(_length(place), space.usual) if place else _AS_USUAL
    unsure = _AS_USUAL if one.uncertainty is None else _share(one.uncertainty, usual)
    return _Ranked(
        one.patient,
        place,
        Suggestion(
            study=one.study,
            volume=one.facts.volume,
            score=(unsure + novelty) / 2,
            uncertainty=unsure,
            novelty=novelty,
            why=_why(one, place, space, unsure),
        ),
    )


def _why(one: _Candidate, place: Mapping[str, float], space: _Space, unsure: float) -> str:
    """What is out of the ordinary about it, in words."""
    told = []
    if one.uncertainty is None:
        told.append("the model has not seen it")
    elif unsure > _AS_USUAL:
        told.append(f"the model is unsure ({one.uncertainty:.2f})")
    far = [name for name in sorted(place, key=lambda n: -abs(place[n])) if abs(place[name]) >= 2][:2]
    values = grid_of(one.facts) | levels_of(one.facts, space.plan)
    for name in far:
        middle = np.exp(space.axes[name][0]) if name in grid_of(one.facts) else space.axes[name][0]
        told.append(f"{name} {values[name]:.3g}, usually {middle:.3g}")
    return "; ".join(told) or "like what the model knows"


def _diverse(ranked: Sequence[_Ranked], space: _Space, count: int) -> list[_Ranked]:
    """The best of each patient; those that are like a better one come after all others."""
    best, patients = [], set[str]()
    for one in ranked:
        if one.patient not in patients:
            patients.add(one.patient)
            best.append(one)
    chosen: list[_Ranked] = []
    alike: list[_Ranked] = []
    for one in best:
        if len(chosen) == count:
            break
        near = any(_distance(one.place, other.place) < _ALIKE for other in chosen)
        (alike if near and one.place else chosen).append(one)
    return [*chosen, *alike][:count]


def _share(value: float, usual: float) -> float:
    return value / (value + usual) if value > 0 else 0.0


def _length(place: Mapping[str, float]) -> float:
    return float(np.sqrt(np.mean(np.square(list(place.values()))))) if place else 0.0


def _distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Over the properties that both have; no distance where they have none."""
    shared = one.keys() & other.keys()
    return _length({name: one[name] - other[name] for name in shared})
