"""Images of a class: a generator and a discriminator, judged by how alike what they make is to validation images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models.dataset import DatasetRow
from models.networks.adversarial import Adversaries
from models.plan import Plan
from models.recipe import Recipe
from tasks.imaging.device import Precision
from tasks.imaging.likeness import Spread, fixed_features
from tasks.train.adversarial import AdversarialLearner
from tasks.train.loop import Termination
from tasks.train.patches import Cases, ImageSampler
from tasks.train.teaching import Choices, Trained
from tasks.train.validate import OverCases

_BATCH = 64


@dataclass(frozen=True)
class Likeness(OverCases):
    """Made images of the validation cases' classes against those cases; 1/(1 + Fréchet distance)."""

    cases: Cases
    targets: tuple[int, ...]
    plan: Plan
    device: torch.device
    name: str = "likeness"

    def __call__(self, network: nn.Module, precision: Precision, cancelled: Callable[[], bool]) -> float:
        """The metric. Raises InterruptedError once `cancelled`."""
        if len(self.cases) < 2:
            return 0.0
        made = self._made(cast(Adversaries, network), cancelled)
        return 1 / (1 + Spread.of(fixed_features(made)).distance(self._real))

    @cached_property
    def _real(self) -> Spread:
        """The validation cases, which stay the same."""
        real = torch.from_numpy(np.stack([np.asarray(self.cases[i].image) for i in range(len(self.cases))])).float()
        return Spread.of(fixed_features(real[:, :, 0] if self.plan.network.dimensions == 2 else real))

    @torch.inference_mode()
    def _made(self, network: Adversaries, cancelled: Callable[[], bool]) -> Tensor:
        chance, parts = torch.Generator().manual_seed(self.plan.seed), []
        for classes in torch.tensor(self.targets, device=self.device).split(_BATCH):
            if cancelled():
                raise InterruptedError
            parts.append(network.draw(classes, chance).cpu())
        return torch.cat(parts)


@dataclass(frozen=True)
class SynthesisTeaching:
    """A synthesis's share."""

    plan: Plan

    def learner(self, device: torch.device) -> AdversarialLearner:
        """Two networks."""
        return AdversarialLearner(self.plan, device)

    def sampler(self, cases: Cases, rows: Sequence[DatasetRow]) -> ImageSampler:
        """Whole images, the classes equally often."""
        return ImageSampler(cases, tuple(row.target for row in rows), self.plan.train.class_balance, self.plan.seed)

    def validation(self, cases: Cases, rows: Sequence[DatasetRow], device: torch.device) -> Likeness:
        """By likeness."""
        return Likeness(cases, tuple(row.target for row in rows), self.plan, device)

    def choose(self, recipe: Recipe, trained: Sequence[Trained], cancelled: Termination) -> Choices:
        """Nothing is chosen afterwards."""
        return Choices()
