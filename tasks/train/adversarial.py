"""A generator and a discriminator while they learn from each other.

Hinge loss with spectral normalisation (Miyato et al. 2018), or Wasserstein distance with a gradient penalty (Gulrajani
et al. 2017). The two have one optimiser with a rate each (Heusel et al. 2017): whoever has no gradient stays as it is.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from models.networks.adversarial import Adversaries
from models.plan import Plan
from tasks.train.execution import Execution
from tasks.train.learner import Learner, rate
from tasks.train.patches import Batch

PENALTY = 10.0
DISCRIMINATOR_RATE = {"hinge": 4.0, "wgan-gp": 1.0}
"""The discriminator's rate, times the generator's: spectral normalisation slows it down, a penalty does not."""
_BETAS = (0.0, 0.9)


class AdversarialLearner(Learner):
    """As its base, for two sides. The averaged weights are the generator's that is kept."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        super().__init__(plan, device, objective=_unused)
        self.sides = cast(Adversaries, self.network)
        groups = [{"params": list(self.sides.generator.parameters())}, {"params": self._judging()}]
        self.optimiser = torch.optim.Adam(groups, lr=plan.train.learning_rate, betas=_BETAS)

    def settle(self, batch: Batch) -> None:
        """Always float32: the balance of the two sides does not bear coarser gradients."""
        if self.execution is None:
            self.position.notes.append(f"fp32 on {self.device.type}: two networks that learn from each other")
            self._carry_out(Execution("fp32", channels_last=self.device.type == "cuda"))

    def step(self, batch: Batch, progress: float) -> float | None:
        """Some updates of the discriminator, then one of the generator, whose loss is returned."""
        train, asked = self.plan.train, self.plan.synthesis
        images, classes = self._on_device(batch)
        images, _ = self._augmented(images, classes)
        for group, times in zip(self.optimiser.param_groups, (1.0, DISCRIMINATOR_RATE[asked.loss]), strict=True):
            group["lr"] = times * train.learning_rate * rate(progress, train)
        chance = torch.Generator().manual_seed((self.plan.seed * 1_000_003 + self.position.step) % 2**63)
        self.position.step += 1
        for _ in range(asked.discriminator_steps):
            with torch.no_grad():
                made = self.sides.draw(classes, chance)
            loss = self._judged(images, made, classes, chance)
            if not self._update(loss):
                return None
        # The discriminator only passes the gradient on.
        for parameter in self._judging():
            parameter.requires_grad_(False)
        try:
            scores = _of_class(self.sides(self.sides.draw(classes, chance)), classes)
            loss = -scores.mean()
            if not self._update(loss):
                return None
        finally:
            for parameter in self._judging():
                parameter.requires_grad_(True)
        self._follow()
        return float(loss.detach())

    def _judged(self, images: Tensor, made: Tensor, classes: Tensor, chance: torch.Generator) -> Tensor:
        real, false = (_of_class(self.sides(x), classes) for x in (images, made))
        if self.plan.synthesis.loss == "hinge":
            return torch.relu(1 - real).mean() + torch.relu(1 + false).mean()
        return false.mean() - real.mean() + PENALTY * self._steepness(images, made, classes, chance)

    def _steepness(self, images: Tensor, made: Tensor, classes: Tensor, chance: torch.Generator) -> Tensor:
        """How far the slope is from 1 between real and made images."""
        share = torch.rand(len(images), *[1] * (images.ndim - 1), generator=chance).to(images.device)
        between = (share * images + (1 - share) * made).requires_grad_()
        scores = _of_class(self.sides(between), classes)
        (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()

    def _update(self, loss: Tensor) -> bool:
        """False where the loss or its gradient is not finite: nothing is changed then."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.train.clip)
        if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
            return False
        self.optimiser.step()
        return True

    def _judging(self) -> list[nn.Parameter]:
        return list(self.sides.discriminator.parameters())


def _of_class(scores: Tensor, classes: Tensor) -> Tensor:
    return scores.gather(1, classes[:, None])[:, 0]


def _unused(logits: Tensor | list[Tensor], targets: Tensor) -> Tensor:
    raise TypeError("two sides have no single objective")
