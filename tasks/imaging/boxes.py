"""Boxes in a whole image: a detector tile by tile, and what is found more than once told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from models.networks.retinanet import anchors, decoded, flattened, pyramid_strides
from models.plan import IntTriple, NetworkPlan, Plan
from tasks.imaging.detection import Floats, Lesions, box_iou, boxed_lesions, intersections
from tasks.imaging.device import Precision, autocast
from tasks.imaging.sliding import Planes, image_tiles, mirrored

FLOOR = 0.05
"""Confidence below which a box is none."""
MOST_A_TILE = 200
OVERLAP = 0.2
"""Intersection over union from which two boxes are of one lesion: lesions seldom overlap, …"""
WITHIN = 0.6
"""… or share of the smaller box that lies in the other."""


@torch.inference_mode()
def image_boxes(
    network: nn.Module,
    image: Planes,
    plan: Plan,
    *,
    precision: Precision = "auto",
    device: torch.device | str = "cpu",
    cancelled: Callable[[], bool] = lambda: False,
) -> Lesions:
    """The lesions of a prepared image (c, z, y, x), the surest first, in its voxels.

    A tile tells those whose middle lies well inside it, where tiles overlap: a lesion cut by its border is whole in
    another. A 2-D network's boxes are joined from slice to slice. Raises InterruptedError once `cancelled`.
    """
    tile, overlap, shape = plan.infer.tile, plan.infer.overlap, image.shape[1:]
    parts = [_Boxes.none()]
    for corners, tiles in image_tiles(image, tile, overlap, device=device, cancelled=cancelled):
        found = _of_tiles(network, tiles, plan.network, plan.infer.mirror_axes, precision)
        parts += [part.placed(corner, tile, shape, overlap) for corner, part in zip(corners, found, strict=True)]
    whole = _Boxes.all_of(parts)
    lesions = boxed_lesions(whole.boxes, whole.classes, whole.sure)
    if plan.network.dimensions == 3:
        return suppressed(lesions)
    # Boxes of other slices never overlap: one call serves all slices.
    return joined(suppressed(lesions))


def suppressed(lesions: Lesions, overlap: float = OVERLAP, within: float = WITHIN) -> Lesions:
    """Without those that a surer one of their class overlaps (non-maximum suppression); idempotent."""
    kept: list[int] = []
    for index in np.unique(lesions.classes):
        waiting = lesions.of_class(index)
        while len(waiting):
            best, rest = waiting[:1], waiting[1:]
            kept.append(int(best[0]))
            waiting = rest[~alike(lesions.chosen(best), lesions.chosen(rest), overlap, within)[0]]
    return lesions.chosen(np.sort(np.array(kept, np.intp)))


def pooled(parts: Sequence[Lesions], shares: Sequence[float]) -> Lesions:
    """What several detectors found in one image, as one: the confidence is the mean of theirs, weighed by `shares`,
    0 for one that did not find it.
    """
    if len(parts) == 1:
        return parts[0]
    boxes, classes, sure = ([getattr(part, name) for part in parts] for name in ("boxes", "classes", "confidence"))
    kept = suppressed(boxed_lesions(np.concatenate(boxes), np.concatenate(classes), np.concatenate(sure)))
    mean = np.zeros(len(kept))
    for part, share in zip(parts, shares, strict=True):
        agrees = alike(kept, part) & (kept.classes[:, None] == part.classes[None])
        mean += share * np.where(agrees, part.confidence[None], 0.0).max(axis=1, initial=0.0)
    return boxed_lesions(kept.boxes, kept.classes, mean)


def alike(first: Lesions, second: Lesions, overlap: float = OVERLAP, within: float = WITHIN) -> NDArray[np.bool_]:
    """(n, m) whether two boxes are of one lesion, whatever their classes."""
    smaller = np.minimum(first.sizes[:, None], second.sizes[None])
    share = intersections(first.boxes, second.boxes) / np.maximum(smaller, 1e-12)
    return np.asarray((box_iou(first.boxes, second.boxes) >= overlap) | (share >= within))


def joined(lesions: Lesions, overlap: float = OVERLAP) -> Lesions:
    """Boxes one slice thick as lesions through the slices: of neighbouring slices those that overlap in the plane.

    In the plane the box is the mean, weighed by confidence; the confidence is the highest.
    """
    if not len(lesions):
        return lesions
    z, flat = lesions.boxes[:, 0], lesions.boxes.copy()
    flat[:, 0], flat[:, 3] = 0, 1
    pairs = [
        (int(i), int(j))
        for here in np.unique(z)
        for i, j in _overlapping(np.flatnonzero(z == here), np.flatnonzero(z == here + 1), flat, lesions, overlap)
    ]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(z), len(z)))
    count, group = connected_components(links, directed=False)
    boxes, sure = np.zeros((count, 6)), np.zeros(count)
    for number in range(count):
        mine = group == number
        boxes[number] = np.average(lesions.boxes[mine], axis=0, weights=lesions.confidence[mine])
        boxes[number, 0], boxes[number, 3] = lesions.boxes[mine, 0].min(), lesions.boxes[mine, 3].max()
        sure[number] = lesions.confidence[mine].max()
    return boxed_lesions(boxes, lesions.classes[np.unique(group, return_index=True)[1]], sure)


def _overlapping(
    here: NDArray[np.intp], above: NDArray[np.intp], flat: Floats, lesions: Lesions, overlap: float
) -> Iterator[tuple[int, int]]:
    alike = lesions.classes[here][:, None] == lesions.classes[above][None]
    for i, j in np.argwhere(alike & (box_iou(flat[here], flat[above]) >= overlap)):
        yield here[i], above[j]


@dataclass(frozen=True)
class _Boxes:
    """(n, 6) corners in voxels, (n,) classes and (n,) confidences."""

    boxes: Floats
    classes: NDArray[np.intp]
    sure: Floats

    @classmethod
    def none(cls) -> _Boxes:
        return cls(np.zeros((0, 6)), np.zeros(0, np.intp), np.zeros(0))

    @classmethod
    def all_of(cls, parts: Sequence[_Boxes]) -> _Boxes:
        boxes, classes, sure = ([getattr(part, name) for part in parts] for name in ("boxes", "classes", "sure"))
        return cls(np.concatenate(boxes), np.concatenate(classes), np.concatenate(sure))

    def placed(self, corner: Sequence[int], tile: IntTriple, shape: Sequence[int], overlap: float) -> _Boxes:
        """In the image, cut off at its borders; those alone whose middle this tile is to tell."""
        first, size, limit = (np.asarray(values, float) for values in (corner, tile, shape))
        margin = np.where(size > 1, overlap / 4 * size, 0.0)
        low = np.where(first > 0, first + margin, -np.inf)
        high = np.where(first + size < limit, first + size - margin, np.inf)
        moved = self.boxes + np.concatenate([first, first])
        middle = (moved[:, :3] + moved[:, 3:]) / 2
        moved = np.clip(moved, 0, np.concatenate([limit, limit]))
        told = ((middle >= low) & (middle < high)).all(1) & (moved[:, 3:] - moved[:, :3] > 0).all(1)
        return _Boxes(moved[told], self.classes[told], self.sure[told])


def _of_tiles(
    network: nn.Module, tiles: Tensor, plan: NetworkPlan, mirror_axes: Sequence[str], precision: Precision
) -> list[_Boxes]:
    """What is found in each of `tiles` (n, c, z, y, x), in its own voxels; mirrored copies add theirs."""
    flat = plan.dimensions == 2
    images = tiles[:, :, 0] if flat else tiles
    found = [[_Boxes.none()] for _ in tiles]
    for flip in mirrored(mirror_axes, flat=flat):
        with autocast(images.device, precision):
            levels = network(images.flip(flip) if flip else images)
        predicted, places = flattened(levels), torch.cat(anchors(levels, pyramid_strides(plan)))
        boxes = _mirrored(decoded(predicted[..., plan.out_channels :], places), flip, images.shape[2:])
        chances = predicted[..., : plan.out_channels].sigmoid()
        for index in range(len(tiles)):
            found[index].append(_surest(boxes[index], chances[index], flat=flat))
    return [_Boxes.all_of(each) for each in found]


def _mirrored(boxes: Tensor, flip: Sequence[int], size: Sequence[int]) -> Tensor:
    d = len(size)
    for axis in flip:
        place = d + axis
        low, high = size[axis] - boxes[..., d + place], size[axis] - boxes[..., place]
        boxes[..., place], boxes[..., d + place] = low, high
    return boxes


def _surest(boxes: Tensor, chances: Tensor, *, flat: bool) -> _Boxes:
    """Those above the floor, at most MOST_A_TILE; `boxes` (n, 2d), `chances` (n, k)."""
    values, order = chances.flatten().sort(descending=True, stable=True)
    count = min(MOST_A_TILE, int((values >= FLOOR).sum()))
    values, order = values[:count], order[:count]
    corners = boxes[order // chances.shape[1]].cpu().double().numpy()
    if flat:
        corners = np.insert(corners, (0, 2), (0.0, 1.0), axis=1)
    return _Boxes(corners, (order % chances.shape[1]).cpu().numpy(), values.cpu().double().numpy())
