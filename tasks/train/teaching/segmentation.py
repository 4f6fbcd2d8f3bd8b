"""Masks: patches, soft Dice, and of which classes only the largest component is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.dataset import DatasetRow
from models.plan import Plan
from models.recipe import Recipe
from tasks.train.cascade import ToldLearner, ToldSampler
from tasks.train.choosing import MaskTrial, choose_temperature
from tasks.train.learner import Learner
from tasks.train.loop import Termination
from tasks.train.objective import objective_for
from tasks.train.patches import Cases, PatchSampler, Sampler
from tasks.train.teaching import Choices, Trained
from tasks.train.validate import MaskValidation


@dataclass(frozen=True)
class MaskTeaching:
    """A segmentation's share."""

    plan: Plan

    def sampler(self, cases: Cases, rows: Sequence[DatasetRow]) -> Sampler:
        """Patches, some of them forced onto foreground."""
        train, plan = self.plan.train, self.plan
        patches = PatchSampler(cases, train.patch_size, train.oversample_foreground, plan.seed)
        if plan.low is None:
            return patches
        return ToldSampler(patches, train.augment, len(plan.classes), plan.regions, plan.seed)

    def validation(self, cases: Cases, rows: Sequence[DatasetRow], device: torch.device) -> MaskValidation:
        """Dice of whole cases."""
        return MaskValidation(cases, self.plan, device)

    def learner(self, device: torch.device) -> Learner:
        """By the plan's `loss`."""
        kind = Learner if self.plan.low is None else ToldLearner
        return kind(self.plan, device, objective_for(self.plan, device))

    def choose(self, recipe: Recipe, trained: Sequence[Trained], cancelled: Termination) -> Choices:
        """The classes of which only the largest component is kept, and the temperature."""
        wish = self.plan.infer.keep_largest
        trial = MaskTrial(self.plan, components=wish == "auto", voxels=recipe.infer.calibrate)
        for one in trained:
            if isinstance(one.validation, MaskValidation) and trial.needed:
                for probabilities, mask in one.validation.predicted(one.network, one.precision, cancelled):
                    trial.take(probabilities, mask)
        temperature, notes = choose_temperature(recipe, trial.probabilities, trial.targets, trial.cases)
        kept = self.plan.classes if wish is True else trial.keep_largest
        return Choices(keep_largest=kept, temperature=temperature, notes=notes)
