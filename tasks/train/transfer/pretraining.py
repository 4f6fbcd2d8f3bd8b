"""Learning from images alone, before the labels come in: masked autoencoding or contrast.

Masked (He et al., "Masked autoencoders are scalable vision learners", CVPR 2022; for convolutions Xie et al., "SimMIM",
CVPR 2022): cubes of a patch are hidden, and what was there is restored. Contrastive (Chen et al., "A simple framework
for contrastive learning of visual representations", ICML 2020): two views of one place are told from all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.hashing import content_key
from models.plan import IntTriple, Plan
from models.recipe import Augment
from tasks.train.checkpoint import Checkpoints
from tasks.train.learner import Learner
from tasks.train.loop import Termination, fit
from tasks.train.objective import Objective
from tasks.train.patches import Batch, Cases, Sampler, cut
from tasks.train.transfer.course import Origin, part
from tasks.train.transfer.pupil import Pupil, pupil_for

HIDDEN = 0.6
"""Share of the cubes that are hidden (SimMIM)."""
CUBES = 8
"""Cubes along an axis of the patch, at most; …"""
LEAST_CUBE = 4
"""… none is smaller, in voxels, unless the axis is."""
TEMPERATURE = 0.2
LEAST_PAIRS = 4
"""With fewer there is nothing to tell a place from."""
SHIFT = 0.25
"""Of the patch: how far two views of a place may lie apart."""
LEARNING_RATE = 1e-3

_SEED = 0x5E1F  # so that the cases are not drawn in the order in which the training proper draws them
_STRONG = Augment(
    rotation=0.5,
    scaling=0.5,
    noise=0.5,
    blur=0.5,
    brightness=0.8,
    contrast=0.8,
    low_resolution=0.3,
    gamma=0.5,
    gamma_inverted=0.2,
)


def pretrain(
    plan: Plan, cases: Cases, device: torch.device, folder: Path, key: str, termination: Termination
) -> Origin:
    """Weights that have seen `cases` without their labels, for `plan.train.start.pretraining_share` of the budget.

    Goes on from its newest checkpoint in `folder`, as training does; raises what `fit` raises.
    """
    own = pretraining_plan(plan)
    learner = _Pretraining(own, device, _objective(own))
    fit(learner, _sampler(own, cases), None, Checkpoints(folder, f"{key}.pretraining"), termination=termination)
    pupil, position = learner.final(), learner.position
    assert isinstance(pupil, Pupil)  # noqa: S101 - as it was made
    losses = [row[1] for row in position.history]
    told = f", loss {losses[0]:.3f} → {losses[-1]:.3f}" if losses else ""
    return Origin(
        pupil.kept(pupil.state_dict()),
        content_key("pretraining", key),
        f"{position.step} steps of {plan.train.start.pretraining} pretraining on {len(cases)} images{told}",
    )


def pretraining_plan(plan: Plan) -> Plan:
    """What of `plan` holds while it learns without labels."""
    train, contrastive = plan.train, plan.train.start.pretraining == "contrastive"
    changes: dict[str, Any] = {
        "optimiser": "adamw",
        "learning_rate": train.learning_rate if train.optimiser == "adamw" else LEARNING_RATE,
        "weight_decay": train.weight_decay if train.optimiser == "adamw" else 1e-2,
        "schedule": "cosine",
        "patience": None,
        "mixup": 0.0,
        "cutmix": 0.0,
        "channel_dropout": 0.0,
        "compile": False,
        "augment": _STRONG if contrastive else Augment.none(),
        "flip_axes": train.flip_axes if contrastive else (),
    }
    shorter = part(train, train.start.pretraining_share).model_copy(update=changes)
    return plan.model_copy(update={"train": shorter})


class _Pretraining(Learner):
    """As its base, for a pupil."""

    def make(self) -> nn.Module:
        return pupil_for(self.plan)


def _sampler(plan: Plan, cases: Cases) -> Sampler:
    patch, seed = plan.train.patch_size, plan.seed
    if plan.train.start.pretraining == "contrastive":
        return ViewSampler(cases, patch, plan.train.batch_size, seed)
    return HidingSampler(cases, patch, seed)


def _objective(plan: Plan) -> Objective:
    if plan.train.start.pretraining == "contrastive":
        return contrast
    return Restoring(plan.network.dimensions)


# -- masked -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HidingSampler:
    """Patches with hidden cubes, which hold 0; targets are (b, c + 1, z, y, x): what was there, and where it is hid."""

    cases: Cases
    patch: IntTriple
    seed: int

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step`."""
        rng = np.random.default_rng((self.seed, _SEED, step))
        whole, hidden = [], []
        for _ in range(size):
            image = self.cases[self.cases.draw(rng)].image
            whole.append(cut(image, random_corner(rng, image.shape[-3:], self.patch), self.patch).astype(np.float32))
            hidden.append(hide(rng, self.patch))
        images, masks = np.stack(whole), np.stack(hidden)[:, None]
        targets = np.concatenate((images, masks.astype(np.float32)), axis=1)
        return Batch(torch.from_numpy(np.where(masks, 0, images)), torch.from_numpy(targets))


def hide(rng: np.random.Generator, patch: IntTriple) -> NDArray[np.bool_]:
    """Which voxels of a patch (z, y, x) are hidden: `HIDDEN` of its cubes."""
    cubes = tuple(max(1, min(CUBES, n // LEAST_CUBE)) for n in patch)
    chosen = np.zeros(int(np.prod(cubes)), bool)
    chosen[rng.permutation(chosen.size)[: max(1, round(HIDDEN * chosen.size))]] = True
    grid = chosen.reshape(cubes)
    for axis, (count, n) in enumerate(zip(cubes, patch, strict=True)):
        grid = np.take(grid, np.arange(n) * count // n, axis=axis)
    return grid


@dataclass(frozen=True)
class Restoring:
    """Mean absolute error over the hidden voxels."""

    dimensions: int

    def __call__(self, restored: Tensor | list[Tensor], targets: Tensor) -> Tensor:
        """`restored` (b, c, …); `targets` (b, c + 1, z, y, x), the last channel where it was hidden."""
        image = restored if isinstance(restored, Tensor) else restored[0]
        truth = targets if self.dimensions == 3 else targets[:, :, 0]
        hidden = truth[:, -1:]
        wrong = (image.float() - truth[:, :-1]).abs() * hidden
        return wrong.sum() / (hidden.sum() * image.shape[1]).clamp(min=1)


# -- contrastive ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ViewSampler:
    """First views, then second views of the same places in the same order.

    A batch of the `planned` size has four places at least; where memory made it smaller, two.
    """

    cases: Cases
    patch: IntTriple
    planned: int
    seed: int

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step`: about `size` views."""
        rng = np.random.default_rng((self.seed, _SEED, step))
        count = max(2, size // 2, LEAST_PAIRS * size // self.planned)
        pairs = [self._pair(rng) for _ in range(count)]
        images = np.stack([view for views in zip(*pairs, strict=True) for view in views])
        return Batch(torch.from_numpy(images.astype(np.float32)), torch.arange(len(pairs)).repeat(2))

    def _pair(self, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        image = self.cases[self.cases.draw(rng)].image
        first = random_corner(rng, image.shape[-3:], self.patch)
        reach = (SHIFT * np.asarray(self.patch)).astype(np.int64)
        second = first + rng.integers(-reach, reach + 1)
        room = np.asarray(image.shape[-3:]) - np.asarray(self.patch)
        second = np.where(room <= 0, first, np.clip(second, 0, np.maximum(room, 0)))
        return cut(image, first, self.patch), cut(image, second, self.patch)


def contrast(projected: Tensor | list[Tensor], targets: Tensor) -> Tensor:
    """NT-Xent: each view (2n, k) is to find the other of its place, which `targets` (2n,) number, among all."""
    assert isinstance(projected, Tensor)  # noqa: S101 - a pupil gives one
    unit = functional.normalize(projected.float(), dim=1)
    likeness = unit @ unit.T / TEMPERATURE
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    pairs = len(unit) // 2
    other = torch.arange(len(unit), device=unit.device).roll(pairs)
    return functional.cross_entropy(likeness.masked_fill(itself, -torch.inf), other)


def random_corner(rng: np.random.Generator, shape: tuple[int, ...], patch: IntTriple) -> NDArray[np.int64]:
    """First voxel of a patch somewhere; negative where the image is smaller, which then lies in the middle."""
    room = np.asarray(shape) - np.asarray(patch)
    return np.where(room < 0, -((-room) // 2), rng.integers(0, np.maximum(room, 0) + 1))
