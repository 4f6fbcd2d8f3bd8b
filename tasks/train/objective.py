"""Losses, on every supervised resolution. Masks by default: soft Dice over the batch + cross-entropy (nnU-Net).

Logits are (b, k, …). Targets are label maps (b, …) or region maps (b, …) with bits; or, of whole images, class
indices (b,), or shares of the classes (b, k).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from models.plan import Activation, Plan
from tasks.train.boundary import boundary
from tasks.train.patches import is_masks

Objective = Callable[[Tensor | list[Tensor], Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Ramped:
    """An objective of which a part rises over the budget, on the finest resolution alone. By itself: all of it."""

    steady: Objective
    rising: Loss

    def __call__(self, logits: Tensor | list[Tensor], targets: Tensor) -> Tensor:
        return self.at(1.0)(logits, targets)

    def at(self, progress: float) -> Objective:
        """The objective at `progress` (0–1) of the budget."""

        def objective(logits: Tensor | list[Tensor], targets: Tensor) -> Tensor:
            finest = logits if isinstance(logits, Tensor) else logits[0]
            return self.steady(logits, targets) + progress * self.rising(finest.float(), targets)

        return objective


def at(objective: Objective, progress: float) -> Objective:
    """What `objective` is at `progress` (0–1) of the budget."""
    return objective.at(progress) if isinstance(objective, Ramped) else objective


def objective_for(plan: Plan, device: torch.device) -> Objective:
    """(logits or list of logits, targets) → scalar."""
    train, spacing = plan.train, plan.prepare.spacing or (1.0, 1.0, 1.0)
    weights = torch.tensor(train.class_weights, device=device) if train.class_weights else None
    losses: dict[str, Loss] = {
        "dice_ce": partial(dice_ce, weights=weights, smoothing=train.label_smoothing),
        "ce": partial(cross_entropy, weights=weights, smoothing=train.label_smoothing),
        "focal": partial(focal, weights=weights),
        "dice_focal": partial(dice_focal, weights=weights),
        "tversky": partial(tversky, errors=train.tversky, activation=plan.activation),
        "bce": partial(binary, weights=weights, smoothing=train.label_smoothing),
        "dice_bce": partial(dice_bce, weights=weights, smoothing=train.label_smoothing),
    }
    if train.loss == "dice_ce_boundary":
        return Ramped(partial(deeply_supervised, losses["dice_ce"]), partial(boundary, spacing=spacing))
    return partial(deeply_supervised, losses[train.loss])


def deeply_supervised(loss: Loss, logits: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
    """Weights 1/2^i, adding up to 1; targets are brought to each head's size by nearest neighbour."""
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    weights = [0.5**i for i in range(len(heads))]
    total = sum(
        (weight * loss(head.float(), _resized(targets, head)) for weight, head in zip(weights, heads, strict=True)),
        torch.zeros((), device=targets.device),
    )
    return total / sum(weights)


def _resized(targets: Tensor, head: Tensor) -> Tensor:
    if not is_masks(targets, head) or targets.shape[1:] == head.shape[2:]:
        return targets
    return functional.interpolate(targets[:, None].float(), head.shape[2:], mode="nearest-exact")[:, 0].to(
        targets.dtype
    )


# -- overlap ----------------------------------------------------------------------------------------------------


def soft_dice(logits: Tensor, targets: Tensor, smooth: float = 1e-5, activation: Activation = "softmax") -> Tensor:
    """1 − mean soft Dice of the foreground classes or the regions, sums over the whole batch."""
    return tversky(logits, targets, errors=(0.5, 0.5), smooth=smooth / 2, activation=activation)


def tversky(
    logits: Tensor,
    targets: Tensor,
    *,
    errors: tuple[float, float],
    smooth: float = 1e-5,
    activation: Activation = "softmax",
) -> Tensor:
    """1 − mean Tversky index (Salehi et al. 2017) of the foreground classes or the regions, over the whole batch.

    TP / (TP + a·FP + b·FN), where `errors` is (a, b): with b > a a missed voxel costs more than one too many. Both
    ½ is Dice.
    """
    probabilities, truth = _foreground(logits, targets, activation)
    axes = (0, *range(2, logits.ndim))
    right = (probabilities * truth).sum(axes)
    invented, missed = probabilities.sum(axes) - right, truth.sum(axes) - right
    return 1 - ((right + smooth) / (right + errors[0] * invented + errors[1] * missed + smooth)).mean()


def _foreground(logits: Tensor, targets: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """(b, k, …) probabilities and truth of the classes after the background, or of all regions."""
    if activation == "sigmoid":
        return logits.sigmoid(), unpacked(targets, logits)
    probabilities = logits.softmax(1)[:, 1:]
    classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (targets.ndim - 1))
    return probabilities, (targets[:, None] == classes).to(probabilities.dtype)


def unpacked(targets: Tensor, logits: Tensor) -> Tensor:
    """Zeros and ones (or shares) like `logits` (b, k, …): the bits of region maps (b, …), or (b, k) as they are."""
    if targets.shape == logits.shape:
        return targets.to(logits.dtype)
    bits = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *[1] * (targets.ndim - 1))
    return (targets[:, None].int() >> bits & 1).to(logits.dtype)


# -- one class alone is true --------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy, of maps or classes, or of (b, k) shares; `weights` one per class (masks: background first).

    The mean is weighted, too: shares that are all 0 or 1 give what classes give.
    """
    if not targets.is_floating_point():
        return functional.cross_entropy(logits, targets.long(), weight=weights, label_smoothing=smoothing)
    scale = torch.ones_like(logits[0]) if weights is None else weights
    smooth = targets * (1 - smoothing) + smoothing / logits.shape[1]
    return -(smooth * scale * logits.log_softmax(1)).sum() / (targets * scale).sum()


def focal(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """(1 − p)^γ · cross-entropy (Lin et al. 2017); targets and weights as `cross_entropy`'s."""
    log_p = logits.log_softmax(1)
    if targets.is_floating_point():
        scale = torch.ones_like(logits[0]) if weights is None else weights
        share = targets * scale
        return -(share * (1 - log_p.exp()) ** gamma * log_p).sum() / share.sum()
    log_p = log_p.gather(1, targets.long()[:, None])[:, 0]
    loss = -((1 - log_p.exp()) ** gamma) * log_p
    if weights is None:
        return loss.mean()
    scale = weights[targets.long()]
    return (loss * scale).sum() / scale.sum()


def dice_ce(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Soft Dice + cross-entropy."""
    return soft_dice(logits, targets) + cross_entropy(logits, targets, weights=weights, smoothing=smoothing)


def dice_focal(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Soft Dice + focal loss."""
    return soft_dice(logits, targets) + focal(logits, targets, weights=weights)


# -- each class by itself -------------------------------------------------------------------------------------------


def binary(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean binary cross-entropy over all classes; `weights` are those of each class's positives."""
    truth = unpacked(targets, logits) * (1 - smoothing) + smoothing / 2
    scale = None if weights is None else weights.view(-1, *[1] * (logits.ndim - 2))
    return functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=scale)


def dice_bce(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Soft Dice + binary cross-entropy, of regions that may overlap."""
    overlap = soft_dice(logits, targets, activation="sigmoid")
    return overlap + binary(logits, targets, weights=weights, smoothing=smoothing)
