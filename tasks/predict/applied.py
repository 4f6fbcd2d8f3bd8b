"""A package on one image, by its kind. A kind is added by one function and one entry in `APPLIED`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from models.recipe import Kind
from models.volume import Volume
from tasks.imaging.detector import believed_from, detect
from tasks.imaging.predictor import Predictor
from tasks.imaging.uncertainty import case_uncertainty
from tasks.predict.findings import Finding, as_mask, classes, lesion_mask, lesions, structures
from tasks.stores.house import Stores


@dataclass(frozen=True, slots=True)
class Said:
    """What an image shows, and how unsure the model is of it: 0 sure, 1 as unsure as can be."""

    findings: tuple[Finding, ...]
    uncertainty: float


class Apply(Protocol):
    """Says what an image shows."""

    def __call__(
        self, stores: Stores, predictor: Predictor, volume: Volume, key: str, clinical: tuple[str, ...] = ()
    ) -> Said:
        """`key` is the prediction's, `clinical` the values of the plan's variables."""
        ...


def segment(stores: Stores, predictor: Predictor, volume: Volume, key: str, clinical: tuple[str, ...] = ()) -> Said:
    """Write the mask under `key`, and measure its structures."""
    found = predictor.segment(volume.array, volume.geometry)
    plan = predictor.package.plan
    stores.volumes.write_mask(key, as_mask(found.labels, plan.classes, volume.geometry, regions=plan.regions))
    measured = structures(found.labels, volume.geometry, plan.classes, found.confidence, regions=plan.regions)
    return Said(measured, case_uncertainty(plan, found.confidence, nearest=found.nearest))


def classify(stores: Stores, predictor: Predictor, volume: Volume, key: str, clinical: tuple[str, ...] = ()) -> Said:
    """A probability for each class."""
    said = predictor.classify(volume.array, volume.geometry, clinical)
    return Said(classes(said, predictor.package), case_uncertainty(predictor.package.plan, said))


def find(stores: Stores, predictor: Predictor, volume: Volume, key: str, clinical: tuple[str, ...] = ()) -> Said:
    """Write the lesions under `key`, and measure them: those that are sure enough."""
    package, geometry = predictor.package, volume.geometry
    found = detect(predictor, volume.array, geometry).from_confidence(believed_from(package))
    names = package.plan.classes
    stores.volumes.write_mask(key, lesion_mask(found, geometry, names))
    return Said(lesions(found, geometry, names), case_uncertainty(package.plan, found.confidence))


APPLIED: Final[Mapping[Kind, Apply]] = {"segmentation": segment, "classification": classify, "detection": find}
"""(stores, predictor, volume, the prediction's key) → what is said."""
