"""Masks: patches, soft Dice, and of which classes only the largest component is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.dataset import DatasetRow
from models.plan import Plan
from models.recipe import Recipe
from tasks.train.learner import Learner
from tasks.train.loop import Termination, Validation
from tasks.train.objective import Objective, objective_for
from tasks.train.patches import Cases, PatchSampler
from tasks.train.teaching import Choices
from tasks.train.validate import MaskValidation, choose_keep_largest


@dataclass(frozen=True)
class MaskTeaching:
    """A segmentation's share."""

    plan: Plan

    def sampler(self, cases: Cases, rows: Sequence[DatasetRow]) -> PatchSampler:
        """Patches, some of them forced onto foreground."""
        train = self.plan.train
        return PatchSampler(cases, train.patch_size, train.oversample_foreground, self.plan.seed)

    def validation(self, cases: Cases, rows: Sequence[DatasetRow], device: torch.device) -> MaskValidation:
        """Dice of whole cases."""
        return MaskValidation(cases, self.plan, device)

    def objective(self, device: torch.device) -> Objective:
        """By the plan's `loss`."""
        return objective_for(self.plan, device)

    def choose(
        self, learner: Learner, recipe: Recipe, validation: Validation | None, cancelled: Termination
    ) -> Choices:
        """The classes of which only the largest component is kept."""
        return Choices(keep_largest=self._kept(learner, validation, cancelled))

    def _kept(self, learner: Learner, validation: Validation | None, cancelled: Termination) -> tuple[str, ...]:
        if self.plan.infer.keep_largest is True:
            return self.plan.classes
        if not self.plan.infer.keep_largest or not isinstance(validation, MaskValidation):
            return ()
        return choose_keep_largest(validation, learner.average, learner.precision, cancelled)
