"""A package on one image, by its kind. A kind is added by one function and one entry in `APPLIED`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from models.recipe import Kind
from models.volume import Volume
from tasks.imaging.detector import believed_from, detect
from tasks.imaging.predictor import Predictor
from tasks.predict.findings import Finding, as_mask, classes, lesion_mask, lesions, structures
from tasks.stores.house import Stores


class Apply(Protocol):
    """Says what an image shows."""

    def __call__(
        self, stores: Stores, predictor: Predictor, volume: Volume, key: str, clinical: tuple[str, ...] = ()
    ) -> tuple[Finding, ...]:
        """`key` is the prediction's, `clinical` the values of the plan's variables."""
        ...


def segment(
    stores: Stores, predictor: Predictor, volume: Volume, key: str, clinical: tuple[str, ...] = ()
) -> tuple[Finding, ...]:
    """Write the mask under `key`, and measure its structures."""
    found = predictor.segment(volume.array, volume.geometry)
    plan = predictor.package.plan
    stores.volumes.write_mask(key, as_mask(found.labels, plan.classes, volume.geometry, regions=plan.regions))
    return structures(found.labels, volume.geometry, plan.classes, found.confidence, regions=plan.regions)


def classify(
    stores: Stores, predictor: Predictor, volume: Volume, key: str, clinical: tuple[str, ...] = ()
) -> tuple[Finding, ...]:
    """A probability for each class."""
    return classes(predictor.classify(volume.array, volume.geometry, clinical), predictor.package)


def find(
    stores: Stores, predictor: Predictor, volume: Volume, key: str, clinical: tuple[str, ...] = ()
) -> tuple[Finding, ...]:
    """Write the lesions under `key`, and measure them: those that are sure enough."""
    package, geometry = predictor.package, volume.geometry
    found = detect(predictor, volume.array, geometry).from_confidence(believed_from(package))
    names = package.plan.classes
    stores.volumes.write_mask(key, lesion_mask(found, geometry, names))
    return lesions(found, geometry, names)


APPLIED: Final[Mapping[Kind, Apply]] = {"segmentation": segment, "classification": classify, "detection": find}
"""(stores, predictor, volume, the prediction's key) → what is found."""
