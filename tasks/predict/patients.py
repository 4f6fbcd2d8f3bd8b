"""A patient as one case: all of its series that the model means, whichever study they came with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.assembly import current
from models.errors import BadInputError, IntegrityError, NocturneError, NotFoundError
from models.geometry import Geometry
from models.plan import CaseFacts
from models.recipe import Images
from models.refs import VolumeRef
from tasks.imaging.facts import image_facts
from tasks.imaging.predictor import Predictor
from tasks.imaging.prepare import prepare_image
from tasks.imaging.uncertainty import case_uncertainty
from tasks.predict.applied import Said
from tasks.predict.beside import fitting_cases, read_image
from tasks.predict.familiarity import Check, check_image
from tasks.predict.findings import classes
from tasks.stores.house import Stores
from tasks.stores.tables import VolumeRow

BAD = (BadInputError, IntegrityError, NotFoundError)
"""What sets one image aside while the others go on."""

SetAside = Callable[[VolumeRef, NocturneError], None]


@dataclass(frozen=True, slots=True)
class PatientCase:
    """What a study adds to the knowledge of its patient: `own` volumes, and the `others` of the patient so far."""

    own: tuple[VolumeRef, ...]
    others: tuple[VolumeRef, ...] = ()

    @property
    def anchor(self) -> VolumeRef:
        """The study's first volume, by which the case goes."""
        return self.own[0]

    @property
    def series(self) -> tuple[VolumeRef, ...]:
        """All of them."""
        return (*self.own, *self.others)


@dataclass(frozen=True, slots=True)
class Found:
    """What is said of a case; `volume` is the one of the study that it is attached to, and `facts` are its."""

    volume: VolumeRef
    said: Said
    checks: tuple[Check, ...]
    facts: CaseFacts


def patient_cases(stores: Stores, images: Images, volumes: Sequence[VolumeRef]) -> tuple[PatientCase, ...]:
    """One case for each study among `volumes`, with what the catalog holds of the patient by now."""
    studies: dict[tuple[str, str], list[VolumeRef]] = {}
    for ref in volumes:
        if (row := stores.catalog.get(VolumeRow, ref.key)) is not None:
            studies.setdefault((row.patient, row.study), []).append(ref)
    return tuple(
        PatientCase(tuple(own), _others(stores, images, patient, {ref.key for ref in own}))
        for (patient, _), own in studies.items()
    )


def _others(stores: Stores, images: Images, patient: str, own: Collection[str]) -> tuple[VolumeRef, ...]:
    """What else of the patient is meant, by key; a series that was received again is not another opinion."""
    known = current(stores.catalog.find(VolumeRow, VolumeRow.patient == patient), own)
    fitting, _ = fitting_cases(stores, images, known)
    return tuple(sorted((ref for ref in fitting if ref.key not in own), key=lambda ref: ref.key))


def say(
    stores: Stores, predictor: Predictor, case: PatientCase, set_aside: SetAside, clinical: tuple[str, ...] = ()
) -> Found:
    """What the model says of the patient; series that are no good are set aside, and the others speak.

    Raises the first error of the study's own series where none of them is good.
    """
    reading = _Reading(stores, predictor, set_aside)
    try:
        probabilities = predictor.classify_many(reading.images(case.series), clinical)
    except BAD:
        good = [ref for ref in case.series if reading.is_good(ref)]
        mine = [ref for ref in case.own if ref in good]
        if not mine:
            raise reading.errors[case.anchor] from None
        case = PatientCase(tuple(mine), tuple(ref for ref in good if ref not in mine))
        reading.checks.clear()
        probabilities = predictor.classify_many(reading.images(case.series), clinical)
    package = predictor.package
    said = Said(classes(probabilities, package), case_uncertainty(package.plan, probabilities))
    return Found(case.anchor, said, tuple(reading.checks), reading.facts[case.anchor])


@dataclass
class _Reading:
    stores: Stores
    predictor: Predictor
    set_aside: SetAside
    checks: list[Check] = field(default_factory=list)
    facts: dict[VolumeRef, CaseFacts] = field(default_factory=dict)
    errors: dict[VolumeRef, NocturneError] = field(default_factory=dict)

    def images(self, series: Sequence[VolumeRef]) -> Iterator[tuple[NDArray[np.generic], Geometry]]:
        """One after the other, compared with what training saw."""
        for ref in series:
            volume = read_image(self.stores, self.predictor.package, ref)
            self.facts[ref] = image_facts(ref.key, volume.array, volume.geometry)
            self.checks += check_image(self.predictor.package, volume, self.facts[ref])
            yield volume.array, volume.geometry

    def is_good(self, ref: VolumeRef) -> bool:
        """Whether a volume can be prepared; else it is set aside."""
        try:
            volume = read_image(self.stores, self.predictor.package, ref)
            prepare_image(volume.array, volume.geometry, self.predictor.package.plan.prepare)
        except BAD as error:
            self.errors[ref] = error
            self.set_aside(ref, error)
        return ref not in self.errors
