"""Losses. Segmentation: soft Dice over the batch + cross-entropy (nnU-Net), on every supervised resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from models.plan import Plan
from tasks.train.patches import is_masks

Objective = Callable[[Tensor | list[Tensor], Tensor], Tensor]


def objective_for(plan: Plan, device: torch.device) -> Objective:
    """(logits or list of logits, targets) → scalar."""
    train = plan.train
    weights = torch.tensor(train.class_weights, device=device) if train.class_weights else None
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "dice_ce": partial(dice_ce, weights=weights, smoothing=train.label_smoothing),
        "ce": partial(cross_entropy, weights=weights, smoothing=train.label_smoothing),
        "focal": partial(focal, weights=weights),
    }
    return partial(deeply_supervised, losses[train.loss])


def deeply_supervised(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor | Sequence[Tensor], targets: Tensor
) -> Tensor:
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


def soft_dice(logits: Tensor, targets: Tensor, smooth: float = 1e-5) -> Tensor:
    """1 − mean soft Dice of the foreground classes, sums over the whole batch. Logits (b, k, …), targets (b, …)."""
    probabilities = logits.softmax(1)[:, 1:]
    classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (targets.ndim - 1))
    truth = (targets[:, None] == classes).to(probabilities.dtype)
    axes = (0, *range(2, logits.ndim))
    overlap = (probabilities * truth).sum(axes)
    size = probabilities.sum(axes) + truth.sum(axes)
    return 1 - ((2 * overlap + smooth) / (size + smooth)).mean()


def cross_entropy(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy; `weights` one per class (background first for masks)."""
    return functional.cross_entropy(logits, targets.long(), weight=weights, label_smoothing=smoothing)


def dice_ce(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Soft Dice + cross-entropy."""
    return soft_dice(logits, targets) + cross_entropy(logits, targets, weights=weights, smoothing=smoothing)


def focal(logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """(1 − p)^γ · cross-entropy (Lin et al. 2017)."""
    log_p = logits.log_softmax(1).gather(1, targets.long()[:, None])[:, 0]
    loss = -((1 - log_p.exp()) ** gamma) * log_p
    if weights is None:
        return loss.mean()
    scale = weights[targets.long()]
    return (loss * scale).sum() / scale.sum()
