"""Lesions: by a segmentation whose components they are, or by a network that gives boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.dataset import DatasetRow
from models.plan import Plan
from models.recipe import Recipe
from tasks.imaging.calibration import tempered
from tasks.imaging.detection import component_lesions, least_voxels
from tasks.imaging.detector import UNJUDGED
from tasks.train.boxes import BoxObjective, LesionSampler
from tasks.train.learner import Learner
from tasks.train.lesions import BoxValidation, Pair, grid_of, threshold_of, true_lesions
from tasks.train.loop import Termination
from tasks.train.patches import Cases, PatchSampler
from tasks.train.teaching import Choices, Teaching, Trained
from tasks.train.teaching.segmentation import MaskTeaching
from tasks.train.validate import MaskValidation


def lesion_teaching(plan: Plan) -> Teaching:
    """By the plan's method."""
    return ComponentTeaching(plan) if plan.segments else BoxTeaching(plan)


@dataclass(frozen=True)
class ComponentTeaching(MaskTeaching):
    """A segmentation's share, and the confidence from which a component is a lesion."""

    def choose(self, recipe: Recipe, trained: Sequence[Trained], cancelled: Termination) -> Choices:
        """The segmentation's choices, and the threshold with the highest F1 over the lesions."""
        choices = super().choose(recipe, trained, cancelled)
        pairs = [pair for one in trained for pair in self._found(one, choices.temperature, cancelled)]
        return replace(choices, threshold=_threshold(self.plan, recipe, pairs))

    def _found(self, one: Trained, temperature: float, cancelled: Termination) -> Iterator[Pair]:
        judge, classes = one.validation, len(self.plan.classes)
        if not isinstance(judge, MaskValidation):
            return
        for index, (said, _) in enumerate(judge.predicted(one.network, one.precision, cancelled)):
            case = judge.cases[index]
            probabilities = tempered(said, temperature)
            labels, doubt = probabilities.argmax(0).astype(np.uint8), 1 - probabilities.max(0).clip(0, 1)
            least = least_voxels(self.plan.detection, grid_of(self.plan, case))
            found = component_lesions(labels, classes, doubt, least=least, most=self.plan.detection.most)
            yield found, true_lesions(self.plan, case)


@dataclass(frozen=True)
class BoxTeaching:
    """A one-stage detector's share."""

    plan: Plan

    def sampler(self, cases: Cases, rows: Sequence[DatasetRow]) -> LesionSampler:
        """Patches with their lesions numbered."""
        train, spacing = self.plan.train, self.plan.prepare.spacing or (1.0, 1.0, 1.0)
        patches = PatchSampler(cases, train.patch_size, train.oversample_foreground, self.plan.seed)
        return LesionSampler(patches, self.plan.detection.min_volume_ml * 1000 / float(np.prod(spacing)))

    def validation(self, cases: Cases, rows: Sequence[DatasetRow], device: torch.device) -> BoxValidation:
        """FROC of whole cases."""
        return BoxValidation(cases, self.plan, device)

    def learner(self, device: torch.device) -> Learner:
        """Focal loss and overlap."""
        return Learner(self.plan, device, BoxObjective(self.plan))

    def choose(self, recipe: Recipe, trained: Sequence[Trained], cancelled: Termination) -> Choices:
        """The threshold with the highest F1 over the lesions."""
        judged = [(one, one.validation) for one in trained if isinstance(one.validation, BoxValidation)]
        pairs = [pair for one, judge in judged for pair in judge.found(one.network, one.precision, cancelled)]
        return Choices(threshold=_threshold(self.plan, recipe, pairs))


def _threshold(plan: Plan, recipe: Recipe, pairs: Sequence[Pair]) -> float:
    """Given by the recipe, or chosen."""
    if recipe.evaluate.threshold != "auto":
        return float(recipe.evaluate.threshold)
    chosen = threshold_of(plan, pairs) if pairs else None
    return UNJUDGED[plan.segments] if chosen is None else chosen
