"""What each kind of model needs of its training: which batches, judged by what, and what is chosen once it is over.

The loop is the same for all. A kind is added by one module and one entry in `TEACHINGS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import nn

from models.dataset import DatasetRow
from models.plan import Plan
from models.recipe import Kind, Recipe
from tasks.imaging.device import Precision
from tasks.train.learner import Learner
from tasks.train.loop import Termination, Validation
from tasks.train.patches import Cases, Sampler


@dataclass(frozen=True, slots=True)
class Choices:
    """What is chosen on cases not learnt from once training is over; goes into the package."""

    threshold: float | None = None
    thresholds: tuple[float, ...] = ()
    keep_largest: tuple[str, ...] = ()
    temperature: float = 1.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished network, and what judges it on cases that it has not learnt from."""

    network: nn.Module
    precision: Precision
    validation: Validation


class Teaching(Protocol):
    """One kind's share of a training."""

    def sampler(self, cases: Cases, rows: Sequence[DatasetRow]) -> Sampler:
        """Draws the training batches. `rows` are the cases', in their order."""
        ...

    def validation(self, cases: Cases, rows: Sequence[DatasetRow], device: torch.device) -> Validation:
        """Judges the network between steps."""
        ...

    def learner(self, device: torch.device) -> Learner:
        """The network while it learns, with what it is to make small."""
        ...

    def choose(self, recipe: Recipe, trained: Sequence[Trained], cancelled: Termination) -> Choices:
        """By what the finished networks say of the cases that judge them, taken together: one network on the
        validation split, or each fold's on its fold; none without validation cases. Raises InterruptedError.
        """
        ...


TEACHINGS: Final[Mapping[Kind, str]] = {
    "segmentation": "tasks.train.teaching.segmentation:MaskTeaching",
    "classification": "tasks.train.teaching.classification:ImageTeaching",
    "detection": "tasks.train.teaching.detection:lesion_teaching",
    "synthesis": "tasks.train.teaching.synthesis:SynthesisTeaching",
}


PATIENTS: Final = "tasks.train.teaching.patients:PatientTeaching"
"""Of a classification whose cases are patients."""


def teaching_for(plan: Plan) -> Teaching:
    """The plan's kind's."""
    module, name = (PATIENTS if plan.of == "patient" else TEACHINGS[plan.kind]).split(":")
    teaching: Teaching = getattr(importlib.import_module(module), name)(plan)
    return teaching
