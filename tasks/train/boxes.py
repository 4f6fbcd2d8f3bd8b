"""Teaching a network boxes: lesions numbered in each patch, anchors matched to them, focal and overlap losses.

Boxes are read off the numbered patch once it is augmented, so that they fit what the network sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from models.networks.retinanet import anchors, decoded, flattened, pyramid_strides
from models.plan import Plan
from tasks.imaging.components import components
from tasks.train.patches import Batch, PatchSampler

CANDIDATES = 9
"""Anchors nearest to a lesion's middle, on each level, among which ATSS chooses."""
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss (Lin et al. 2017)."""
BOX_WEIGHT = 2.0
_CLASS = 1 << 16


@dataclass(frozen=True)
class LesionSampler:
    """Patches whose targets (b, z, y, x) int32 number the lesions: `least` voxels at least, or cut by the border."""

    patches: PatchSampler
    least: float

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step`."""
        drawn = self.patches.batch(step, size)
        numbered = np.stack([numbered_lesions(mask, self.least) for mask in drawn.targets.numpy()])
        return replace(drawn, targets=torch.from_numpy(numbered))


def numbered_lesions(mask: NDArray[np.uint8], least: float) -> NDArray[np.int32]:
    """Of a label map (z, y, x): the class's index (from 0) times 65,536, plus the component's number from 1."""
    numbers = np.zeros(mask.shape, np.int32)
    for value in np.unique(mask[mask > 0]).tolist():
        found, sizes = components(mask == value)
        for number, part in enumerate(ndimage.find_objects(found), 1):
            whole = all(p.start > 0 and p.stop < n for p, n in zip(part, mask.shape, strict=True) if n > 1)
            if sizes[number - 1] >= least or not whole:
                numbers[part][found[part] == number] = (value - 1) * _CLASS + number
    return numbers


def boxes_in(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (m, 2d) float32 and classes (m,) of a numbered patch (…)."""
    places = torch.nonzero(numbers)
    values, which = torch.unique(numbers[tuple(places.T)], return_inverse=True)
    spread = which[:, None].expand_as(places)
    low = torch.zeros((len(values), numbers.ndim), dtype=torch.long, device=numbers.device)
    high = low.clone()
    low.scatter_reduce_(0, spread, places, "amin", include_self=False)
    high.scatter_reduce_(0, spread, places, "amax", include_self=False)
    return torch.cat((low, high + 1), dim=1).float(), (values // _CLASS).long()


@dataclass(frozen=True)
class BoxObjective:
    """(outputs of the levels, numbered patches) → focal loss of the classes + 2 · generalised IoU loss of the boxes.

    Both are summed and divided by the matched anchors of the whole batch.
    """

    plan: Plan

    def __call__(self, outputs: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
        """A scalar."""
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        classes = self.plan.network.out_channels
        places = anchors(levels, pyramid_strides(self.plan.network))
        everywhere, predicted = torch.cat(places), flattened(levels)
        wanted = torch.zeros_like(predicted[..., :classes])
        overlap = predicted.new_zeros(())
        matched = 0
        for image, numbers in enumerate(targets):
            boxes, kinds = boxes_in(numbers)
            chosen, lesion = match_anchors(places, boxes)
            wanted[image, chosen, kinds[lesion]] = 1
            found = decoded(predicted[image, chosen, classes:], everywhere[chosen])
            overlap = overlap + (1 - generalised_iou(found, boxes[lesion])).sum()
            matched += len(chosen)
        return (focal_loss(predicted[..., :classes], wanted) + BOX_WEIGHT * overlap) / max(1, matched)


def match_anchors(levels: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Which anchors learn which of `boxes` (m, 2d): (a,) anchors over all levels, (a,) boxes (ATSS: Zhang et al. 2020).

    Of the anchors nearest to a lesion on each level, those whose overlap is above the mean plus the deviation and
    whose middle lies inside; and always the one that overlaps most, so that no lesion is too small to be learnt.
    """
    everywhere, d = torch.cat(list(levels)), boxes.shape[1] // 2
    if not len(boxes):
        none = torch.zeros(0, dtype=torch.long, device=boxes.device)
        return none, none
    middles = (boxes[:, :d] + boxes[:, d:]) / 2
    near, first = [], 0
    for places in levels:
        apart = torch.cdist(middles, places[:, :d], compute_mode="donot_use_mm_for_euclid_dist")
        near.append(apart.argsort(dim=1, stable=True)[:, :CANDIDATES] + first)
        first += len(places)
    candidates = torch.cat(near, dim=1)
    middle, half = everywhere[candidates, :d], everywhere[candidates, d:] / 2
    overlap = _iou(torch.cat((middle - half, middle + half), dim=-1), boxes[:, None])
    inside = ((middle > boxes[:, None, :d]) & (middle < boxes[:, None, d:])).all(-1)
    level = overlap.mean(1, keepdim=True) + overlap.std(1, unbiased=False, keepdim=True)
    taken = inside & (overlap >= level)
    taken[torch.arange(len(boxes), device=boxes.device), overlap.argmax(1)] = True
    # An anchor near two lesions learns the one that it overlaps more; of equals the first.
    merit = torch.full((len(boxes), len(everywhere)), -1.0, device=boxes.device)
    merit.scatter_(1, candidates, torch.where(taken, overlap, -1.0))
    best, lesion = merit.max(dim=0)
    chosen = torch.nonzero(best >= 0)[:, 0]
    return chosen, lesion[chosen]


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the binary focal loss over all places and classes."""
    cost = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    chance = logits.sigmoid()
    miss = targets * (1 - chance) + (1 - targets) * chance
    weight = targets * ALPHA + (1 - targets) * (1 - ALPHA)
    return (weight * miss**GAMMA * cost).sum()


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """(n,) of boxes (n, 2d) in pairs (Rezatofighi et al. 2019): 1 where they agree, towards −1 far apart."""
    d = first.shape[-1] // 2
    hull = (torch.maximum(first[:, d:], second[:, d:]) - torch.minimum(first[:, :d], second[:, :d])).prod(-1)
    union = _volume(first) + _volume(second) - _intersection(first, second)
    return _intersection(first, second) / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)


def _iou(first: Tensor, second: Tensor) -> Tensor:
    both = _intersection(first, second)
    return both / (_volume(first) + _volume(second) - both).clamp_min(1e-6)


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    d = first.shape[-1] // 2
    high, low = torch.minimum(first[..., d:], second[..., d:]), torch.maximum(first[..., :d], second[..., :d])
    return (high - low).clamp_min(0).prod(-1)


def _volume(boxes: Tensor) -> Tensor:
    d = boxes.shape[-1] // 2
    return (boxes[..., d:] - boxes[..., :d]).prod(-1)
