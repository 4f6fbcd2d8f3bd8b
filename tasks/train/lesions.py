"""Lesions on validation cases: what judges a detector while it learns, and from which confidence on it is believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models.geometry import Geometry
from models.plan import Plan
from tasks.imaging.boxes import image_boxes
from tasks.imaging.detection import Lesions, component_lesions, counted, least_voxels, match
from tasks.imaging.device import Precision
from tasks.imaging.froc import Marks, best_threshold, froc
from tasks.imaging.sliding import Whole
from tasks.train.patches import Case, Cases
from tasks.train.validate import Cancelled, OverCases

Pair = tuple[Lesions, Lesions]
"""What was found in a case, and the truth."""


@dataclass(frozen=True)
class BoxValidation(OverCases):
    """Whole prepared cases, tile by tile; the metric is the mean FROC over the classes."""

    cases: Cases
    plan: Plan
    device: torch.device
    name: str = "froc"

    def __call__(self, network: nn.Module, precision: Precision, cancelled: Cancelled) -> float:
        """Mean FROC; 0 without a lesion. Raises InterruptedError once `cancelled`."""
        return mean_froc(self.plan, self.found(network, precision, cancelled))

    def found(self, network: nn.Module, precision: Precision, cancelled: Cancelled) -> Iterator[Pair]:
        """Of each case."""
        for index in range(len(self.cases)):
            case = self.cases[index]
            image = Whole(torch.from_numpy(np.asarray(case.image, dtype=np.float32)))
            lesions = image_boxes(
                network, image, self.plan, precision=precision, device=self.device, cancelled=cancelled
            )
            yield counted(lesions, self.plan.detection, grid_of(self.plan, case)), true_lesions(self.plan, case)


def true_lesions(plan: Plan, case: Case) -> Lesions:
    """Of a prepared case. Raises ValueError without a mask."""
    if case.mask is None:
        raise ValueError("a case without a mask cannot validate a detection")
    least = least_voxels(plan.detection, grid_of(plan, case))
    return component_lesions(np.asarray(case.mask), len(plan.classes), least=least)


def grid_of(plan: Plan, case: Case) -> Geometry:
    """The prepared grid, as far as distances in it matter."""
    return Geometry.from_spacing(case.image.shape[1:], plan.prepare.spacing or (1.0, 1.0, 1.0))


def mean_froc(plan: Plan, pairs: Iterable[Pair]) -> float:
    """Over the classes that have lesions; 0 where none has."""
    every = [marks for marks in marks_of(plan, list(pairs)) if marks.lesions.any()]
    scores = [float(froc(marks)(np.ones((1, len(marks.lesions))))[0, -1]) for marks in every]
    return float(np.mean(scores)) if scores else 0.0


def threshold_of(plan: Plan, pairs: Iterable[Pair]) -> float | None:
    """The confidence with the highest F1 over the lesions of all classes; None where none is found."""
    every = marks_of(plan, list(pairs))
    return best_threshold(
        Marks(
            np.concatenate([marks.image for marks in every]),
            np.concatenate([marks.confidence for marks in every]),
            np.concatenate([marks.right for marks in every]),
            np.sum([marks.lesions for marks in every], axis=0),
        )
    )


def marks_of(plan: Plan, pairs: list[Pair]) -> list[Marks]:
    """Of each class, over all cases. Distances are in mm on the prepared grid."""
    spacing = plan.prepare.spacing or (1.0, 1.0, 1.0)
    matched = [match(found, truth, plan.detection, Geometry.from_spacing((1, 1, 1), spacing)) for found, truth in pairs]
    made = []
    for index in range(len(plan.classes)):
        image, sure, right = [], [], []
        for number, ((found, _), hits) in enumerate(zip(pairs, matched, strict=True)):
            mine = found.of_class(index)
            image += [number] * len(mine)
            sure += found.confidence[mine].tolist()
            right += (hits[mine] >= 0).tolist()
        lesions = [len(truth.of_class(index)) for _, truth in pairs]
        made.append(Marks.of(image, sure, right, lesions))
    return made
