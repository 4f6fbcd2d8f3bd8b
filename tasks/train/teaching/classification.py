"""Classes of images: whole images, balanced, and the threshold from which a case is called positive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.dataset import DatasetRow
from models.plan import Plan, clinical_numbers
from models.recipe import Recipe
from tasks.imaging.calibration import tempered
from tasks.train.choosing import choose_temperature
from tasks.train.learner import Learner
from tasks.train.loop import Termination
from tasks.train.objective import objective_for
from tasks.train.patches import Cases, ImageSampler, Targets
from tasks.train.teaching import Choices, Trained
from tasks.train.validate import ImageValidation, choose_threshold


@dataclass(frozen=True)
class ImageTeaching:
    """A classification's share."""

    plan: Plan

    def sampler(self, cases: Cases, rows: Sequence[DatasetRow]) -> ImageSampler:
        """Whole images."""
        balanced = self.plan.train.class_balance
        return ImageSampler(cases, self._targets(rows), balanced, self.plan.seed, clinical_of(self.plan, rows))

    def validation(self, cases: Cases, rows: Sequence[DatasetRow], device: torch.device) -> ImageValidation:
        """Area under the ROC curve."""
        return ImageValidation(cases, self._targets(rows), self.plan, device, clinical=clinical_of(self.plan, rows))

    def learner(self, device: torch.device) -> Learner:
        """By the plan's `loss`."""
        return Learner(self.plan, device, objective_for(self.plan, device))

    def choose(self, recipe: Recipe, trained: Sequence[Trained], cancelled: Termination) -> Choices:
        """The temperature, and then the threshold of two classes, or of each of several: given, or chosen."""
        known = [(one, one.validation) for one in trained if isinstance(one.validation, ImageValidation)]
        said = [judge.probabilities(one.network, one.precision, cancelled) for one, judge in known]
        targets = [target for _, judge in known for target in judge.targets]
        classes = len(self.plan.classes)
        true = np.asarray(targets, np.intp).reshape(-1, classes) if self.plan.several else np.asarray(targets, np.intp)
        return self.chosen(recipe, np.concatenate([np.empty((0, classes), np.float32), *said]), true)

    def chosen(self, recipe: Recipe, probabilities: NDArray[np.float32], targets: NDArray[np.intp]) -> Choices:
        """By the probabilities (cases, classes) of cases not learnt from; there may be none.

        `targets` are (cases,) classes, or (cases, classes) of 0 and 1.
        """
        temperature, notes = choose_temperature(recipe, probabilities, targets, len(targets))
        if self.plan.several:
            scores = tempered(probabilities, temperature, axis=1, independent=True)
            return Choices(thresholds=_each(recipe, scores, targets > 0), temperature=temperature, notes=notes)
        if len(self.plan.classes) != 2:
            return Choices(temperature=temperature, notes=notes)
        if recipe.evaluate.threshold != "auto":
            return Choices(float(recipe.evaluate.threshold), temperature=temperature, notes=notes)
        if not len(targets):
            return Choices(0.5, temperature=temperature, notes=notes)
        names = self.plan.classes
        positive = names.index(recipe.evaluate.positive) if recipe.evaluate.positive in names else 1
        scores = tempered(probabilities, temperature, axis=1)[:, positive]
        return Choices(choose_threshold(scores, targets == positive), temperature=temperature, notes=notes)

    def _targets(self, rows: Sequence[DatasetRow]) -> Targets:
        return tuple(row.classes for row in rows) if self.plan.several else tuple(row.target for row in rows)


def clinical_of(plan: Plan, rows: Sequence[DatasetRow]) -> NDArray[np.float32] | None:
    """(cases, v) What the network is told of each case beside its image; None where it takes nothing."""
    if not plan.variables:
        return None
    numbers = [clinical_numbers(plan.variables, row.clinical) for row in rows]
    return np.asarray(numbers, np.float32).reshape(len(rows), plan.network.variables)


def _each(recipe: Recipe, scores: NDArray[np.float32], shown: NDArray[np.bool_]) -> tuple[float, ...]:
    """One threshold for each class of (cases, classes)."""
    asked = recipe.evaluate.threshold
    if asked != "auto":
        return (float(asked),) * scores.shape[1]
    return tuple(choose_threshold(column, there) for column, there in zip(scores.T, shown.T, strict=True))
