"""Classes of images: whole images, balanced, and the threshold from which a case is called positive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.dataset import DatasetRow
from models.plan import Plan
from models.recipe import Recipe
from tasks.train.learner import Learner
from tasks.train.loop import Termination, Validation
from tasks.train.objective import Objective, objective_for
from tasks.train.patches import Cases, ImageSampler
from tasks.train.teaching import Choices
from tasks.train.validate import ImageValidation, choose_threshold


@dataclass(frozen=True)
class ImageTeaching:
    """A classification's share."""

    plan: Plan

    def sampler(self, cases: Cases, rows: Sequence[DatasetRow]) -> ImageSampler:
        """Whole images."""
        return ImageSampler(cases, _targets(rows), self.plan.train.class_balance, self.plan.seed)

    def validation(self, cases: Cases, rows: Sequence[DatasetRow], device: torch.device) -> ImageValidation:
        """Area under the ROC curve."""
        return ImageValidation(cases, _targets(rows), self.plan, device)

    def objective(self, device: torch.device) -> Objective:
        """By the plan's `loss`."""
        return objective_for(self.plan, device)

    def choose(
        self, learner: Learner, recipe: Recipe, validation: Validation | None, cancelled: Termination
    ) -> Choices:
        """Of two classes, the threshold: given by the recipe, or chosen on the validation split."""
        if len(self.plan.classes) != 2:
            return Choices()
        if recipe.evaluate.threshold != "auto":
            return Choices(threshold=float(recipe.evaluate.threshold))
        if not isinstance(validation, ImageValidation):
            return Choices(threshold=0.5)
        names = self.plan.classes
        positive = names.index(recipe.evaluate.positive) if recipe.evaluate.positive in names else 1
        scores = validation.probabilities(learner.average, learner.precision, cancelled)[:, positive]
        return Choices(threshold=choose_threshold(scores, np.asarray(validation.targets) == positive))


def _targets(rows: Sequence[DatasetRow]) -> tuple[int, ...]:
    return tuple(row.target for row in rows)
