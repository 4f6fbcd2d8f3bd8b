"""A package of the kind detection on one image: its lesions on the image's own grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import PackageError
from models.geometry import Geometry
from models.package import ModelPackage
from tasks.imaging.boxes import image_boxes, pooled
from tasks.imaging.calibration import tempered
from tasks.imaging.crop import box_slices
from tasks.imaging.detection import Lesions, component_lesions, counted, least_voxels, on_grid
from tasks.imaging.device import memory_told
from tasks.imaging.predictor import Predictor
from tasks.imaging.prepare import prepare_image
from tasks.imaging.restore import Float32
from tasks.imaging.sliding import Whole

UNJUDGED: Final = {True: 0.5, False: 0.3}
"""The confidence believed where no validation lesion was found, by whether the network segments. The focal loss keeps
that of sure boxes low."""


def detect(predictor: Predictor, array: NDArray[Any], geometry: Geometry) -> Lesions:
    """The lesions of an image ([c,] z, y, x), the surest first, however unsure; at most as many as the recipe reports.

    Raises PixelError where the image does not fit the plan, PackageError for a package that does not detect.
    """
    plan = predictor.package.plan
    if plan.kind != "detection":
        raise PackageError(f"a {plan.kind} model gives no lesions", where=predictor.package.key)
    found = _components(predictor, array, geometry) if plan.segments else _boxes(predictor, array, geometry)
    return counted(found, plan.detection, geometry)


def believed_from(package: ModelPackage) -> float:
    """The confidence from which on a lesion is called: given by the recipe, or chosen on validation."""
    asked = package.recipe.evaluate.threshold
    if asked != "auto":
        return float(asked)
    return UNJUDGED[package.plan.segments] if package.threshold is None else package.threshold


def _components(predictor: Predictor, array: NDArray[Any], geometry: Geometry) -> Lesions:
    plan = predictor.package.plan
    decision = _Sure(predictor.package.temperature)
    labels, crop = predictor.decide(array, geometry, decision)
    doubt = np.ones(labels.shape, np.float16)
    doubt[box_slices(crop)] = decision.doubt
    least = least_voxels(plan.detection, geometry)
    return component_lesions(labels, len(plan.classes), doubt, least=least, most=plan.detection.most)


def _boxes(predictor: Predictor, array: NDArray[Any], geometry: Geometry) -> Lesions:
    found = []
    with memory_told(predictor.package.key):
        for part in predictor.parts:
            prepared = prepare_image(array, geometry, part.plan.prepare)
            image = Whole(torch.from_numpy(prepared.array))
            lesions = image_boxes(
                part.network, image, part.plan, precision=predictor.precision, device=predictor.device
            )
            found.append(on_grid(lesions, prepared.geometry, geometry))
    return pooled(found, [part.share for part in predictor.parts])


class _Sure:
    """The likeliest class of each voxel; remembers how doubtful it was."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._parts: list[NDArray[np.float16]] = []

    def take(self, channels: Iterator[Float32]) -> NDArray[np.uint8]:
        """A label map."""
        said = np.maximum(np.stack(list(channels)), 0)  # interpolation may leave a value just below zero
        likely = tempered(said, self._temperature).max(axis=0)
        self._parts.append((1 - likely).clip(0, 1).astype(np.float16))
        return np.asarray(said.argmax(axis=0), np.uint8)

    def confidence(self, classes: int) -> tuple[float, ...]:
        """Lesions are sure one by one: here there is nothing to tell."""
        return (0.0,) * classes

    @property
    def doubt(self) -> NDArray[np.float16]:
        """(z, y, x), of all that was taken."""
        return np.concatenate(self._parts)
