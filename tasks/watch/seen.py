"""What is compared: the cases that a model learnt from, and those that it was shown since."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import exists, select

from models.errors import NotFoundError, PackageError
from models.package import ModelPackage
from models.plan import CaseFacts
from tasks.imaging.facts import trained_on
from tasks.stores.house import Stores
from tasks.stores.tables import PackageRow, PredictionRow, VolumeRow

_LOOKED_AT = 10
"""Times the window: predictions that are looked through for as many patients."""

_AT_ONCE = 200
"""Predictions that are fetched at a time: each comes with its facts, and with a look for its volume."""

T = TypeVar("T", bound="Case")


@dataclass(frozen=True, slots=True)
class Case:
    """An image, and the scanner that it comes from; "" is not known."""

    patient: str
    facts: CaseFacts
    manufacturer: str = ""
    scanner: str = ""


@dataclass(frozen=True, slots=True)
class Predicted(Case):
    """An image that a version of the model was shown, and what that said."""

    study: str = ""
    prediction: str = ""
    package: str = ""
    findings: tuple[Mapping[str, Any], ...] = ()
    uncertainty: float | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """Training cases; `scanners` says whether it is known where they come from."""

    cases: tuple[Case, ...]
    scanners: bool


def training_cases(stores: Stores, package: ModelPackage) -> Known | None:
    """The real images that the package learnt from, one a patient; None where it does not tell."""
    try:
        seen = trained_on(package)
    except PackageError:  # another version's words: what is said of it still counts
        seen = None
    if seen is None:
        return None
    try:
        rows = {row.volume: row for row in stores.datasets.read(package.dataset).split("train")}
    except NotFoundError:
        return Known(tuple(Case(facts.volume, facts) for facts in seen.cases), scanners=False)
    pairs = [(rows.get(facts.volume), facts) for facts in seen.cases]
    cases = [Case(r.patient, facts, r.manufacturer, r.model_name) for r, facts in pairs if r and not r.synthetic]
    return Known(tuple(one_a_patient(cases)), scanners=True)


def predicted_cases(
    stores: Stores, name: str, *, package: str | None = None, oldest: bool = False, limit: int | None = None
) -> list[Predicted]:
    """The images that this model was shown, in any version or in one, the newest first or the oldest."""
    moment = PredictionRow.created_at
    # Asked first: looking for the newest of a model that said nothing yet goes through all that others said.
    spoke = select(PackageRow.package).where(
        PackageRow.name == name, exists().where(PredictionRow.package == PackageRow.package)
    )
    if package is not None:
        spoke = spoke.where(PackageRow.package == package)
    with stores.catalog.reading() as session:
        if not (versions := session.scalars(spoke).all()):
            return []
        query = (
            select(PredictionRow, VolumeRow.patient, VolumeRow.study, VolumeRow.manufacturer, VolumeRow.model_name)
            .join(VolumeRow, PredictionRow.volume == VolumeRow.volume)
            .where(PredictionRow.package.in_(versions))
            .order_by(moment if oldest else moment.desc(), PredictionRow.prediction)
            .limit(limit)
        )
        return list(_told(session.execute(query.execution_options(yield_per=_AT_ONCE))))


def window(
    stores: Stores, name: str, size: int, learnt: Collection[str], *, package: str | None = None, oldest: bool = False
) -> list[Predicted]:
    """The last (or the first) `size` patients that the model was shown, one image each; the newest (the oldest) first.

    Several images of a patient are alike and no evidence of their own; and what it has `learnt` from tells nothing of
    what comes.
    """
    found = predicted_cases(stores, name, package=package, oldest=oldest, limit=_LOOKED_AT * size)
    return list(one_a_patient(case for case in found if case.facts.volume not in learnt))[:size]


def one_a_patient(cases: Iterable[T]) -> Iterator[T]:
    """The first of each patient."""
    met = set[str]()
    for case in cases:
        if case.patient not in met:
            met.add(case.patient)
            yield case


def _told(rows: Iterable[Any]) -> Iterator[Predicted]:
    for prediction, patient, study, manufacturer, scanner in rows:
        if prediction.facts is not None:  # predicted before they were kept
            yield Predicted(
                patient=patient,
                facts=CaseFacts.model_validate(prediction.facts),
                manufacturer=manufacturer,
                scanner=scanner,
                study=study,
                prediction=prediction.prediction,
                package=prediction.package,
                findings=tuple(prediction.result.get("findings", ())),
                uncertainty=prediction.uncertainty,
            )
