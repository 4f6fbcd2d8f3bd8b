"""Lesions of one image: components of a mask, or boxes, each with a confidence; and which of them hit true ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from models.geometry import Geometry
from models.recipe import Detection
from tasks.imaging.components import components

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lesions:
    """n lesions of one image, the surest first.

    Coordinates (z, y, x) are of voxels' borders: voxel i reaches from i to i + 1. `boxes` (n, 6) are the lowest and
    the highest corner, `centres` (n, 3) the components' or the boxes' middles, `classes` (n,) count from 0, `sizes`
    (n,) are voxels. `numbered` (z, y, x) is i + 1 where lesion i is; None where only boxes are known.
    """

    boxes: Floats
    centres: Floats
    classes: NDArray[np.intp]
    confidence: Floats
    sizes: Floats
    numbered: NDArray[np.uint16] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def first(self, most: int) -> Lesions:
        """The `most` surest."""
        return self.chosen(np.arange(min(most, len(self))))

    def from_confidence(self, least: float) -> Lesions:
        """Those of at least this confidence."""
        return self.chosen(np.flatnonzero(self.confidence >= least))

    def of_class(self, index: int) -> NDArray[np.intp]:
        """The numbers (from 0) of one class's."""
        return np.flatnonzero(self.classes == index)

    def radii(self, voxel_mm3: float) -> Floats:
        """Of balls of their volume, mm."""
        return np.cbrt(self.sizes * voxel_mm3 * 3 / (4 * np.pi))

    def drawn(self, shape: tuple[int, int, int]) -> NDArray[np.uint16]:
        """`numbered`; where only boxes are known these, the surer over the others."""
        if self.numbered is not None:
            return self.numbered
        numbers = np.zeros(shape, np.uint16)
        for number in range(len(self), 0, -1):
            box = self.boxes[number - 1]
            low, high = np.floor(box[:3] + 0.5).astype(int), np.ceil(box[3:] - 0.5).astype(int)
            low = np.minimum(low, np.asarray(shape) - 1)
            z, y, x = (slice(a, max(b, a + 1)) for a, b in zip(low, high, strict=True))
            numbers[z, y, x] = number
        return numbers

    def chosen(self, which: NDArray[np.intp]) -> Lesions:
        """Those of these numbers (from 0), rising."""
        numbered = self.numbered
        if numbered is not None and len(which) < len(self):
            new = np.zeros(len(self) + 1, np.uint16)
            new[which + 1] = np.arange(1, len(which) + 1)
            numbered = new[numbered]
        return Lesions(
            self.boxes[which],
            self.centres[which],
            self.classes[which],
            self.confidence[which],
            self.sizes[which],
            numbered,
        )


def component_lesions(
    labels: NDArray[np.uint8],
    classes: int,
    doubt: NDArray[np.floating[Any]] | None = None,
    *,
    least: float = 0.0,
    most: int = 2**16 - 1,
) -> Lesions:
    """The 26-connected components of each class of a label map (z, y, x), i + 1 the i-th class.

    `doubt` is 1 − the probability of what a voxel is called: half precision keeps it apart where probabilities come
    near 1. The confidence is 1 − the least of it inside (1 without it): a small lesion's rim is as unsure as its core
    is sure, so that a mean would hold its size against it. Components of fewer than `least` voxels are left out.
    """
    found: list[tuple[float, tuple[slice, ...], NDArray[np.bool_], int]] = []
    for index, part in enumerate(ndimage.find_objects(labels, max_label=classes)):
        if part is None:
            continue
        numbered, sizes = components(labels[part] == index + 1)
        for number, box in enumerate(ndimage.find_objects(numbered), 1):
            if sizes[number - 1] < max(least, 1):
                continue
            place = tuple(slice(p.start + b.start, p.start + b.stop) for p, b in zip(part, box, strict=True))
            inside = numbered[box] == number
            found.append((1.0 if doubt is None else 1.0 - float(doubt[place][inside].min()), place, inside, index))
    found.sort(key=lambda one: -one[0])
    found = found[:most]
    drawn = np.zeros(labels.shape, np.uint16)
    centres = np.zeros((len(found), 3))
    for number, (_, place, inside, _) in enumerate(found):
        drawn[place][inside] = number + 1
        corner = [p.start for p in place]
        centres[number] = np.argwhere(inside).mean(axis=0) + corner + 0.5
    boxes = [[*(p.start for p in place), *(p.stop for p in place)] for _, place, _, _ in found]
    return Lesions(
        np.array(boxes, float).reshape(-1, 6),
        centres,
        np.array([index for *_, index in found], np.intp),
        np.array([confidence for confidence, *_ in found], float),
        np.array([np.count_nonzero(inside) for _, _, inside, _ in found], float),
        drawn,
    )


def boxed_lesions(boxes: ArrayLike, classes: ArrayLike, confidence: ArrayLike) -> Lesions:
    """Lesions of which no more than boxes (n, 6) is known."""
    corners = np.asarray(boxes, dtype=float).reshape(-1, 6)
    sure = np.asarray(confidence, dtype=float).ravel()
    order = np.argsort(-sure, kind="stable")
    corners = corners[order]
    return Lesions(
        corners,
        (corners[:, :3] + corners[:, 3:]) / 2,
        np.asarray(classes, dtype=np.intp).ravel()[order],
        sure[order],
        np.prod(np.maximum(corners[:, 3:] - corners[:, :3], 0), axis=1),
    )


def on_grid(lesions: Lesions, source: Geometry, target: Geometry) -> Lesions:
    """Boxes of one grid on another whose axes run along the same lines, cut off at its borders."""
    corners = [target.to_index(source.to_world(lesions.boxes[:, side] - 0.5)) + 0.5 for side in (_LOW, _HIGH)]
    ends = np.stack(corners)
    moved = np.concatenate([ends.min(0), ends.max(0)], axis=1)
    limit = np.asarray(target.shape, dtype=float)
    moved = np.clip(moved, 0, np.concatenate([limit, limit]))
    kept = (moved[:, _HIGH] - moved[:, _LOW]).min(axis=1, initial=np.inf) > 0
    return boxed_lesions(moved[kept], lesions.classes[kept], lesions.confidence[kept])


# -- who hits whom ----------------------------------------------------------------------------------------------


def match(found: Lesions, truth: Lesions, rule: Detection, geometry: Geometry) -> NDArray[np.intp]:
    """For each of `found` the true lesion that it finds, −1 for none: the surest choose first, and each lesion is
    found once. A second mark on the same lesion is a false positive.

    `rule.hit` "centre": a centre lies in the lesion's mask, or within the radius of a ball of its volume round its
    centroid, so that hollow and crooked lesions can be found too (LUNA16's rule: within the nodule's radius). "iou":
    the boxes' intersection over union is at least `rule.hit_iou`. Of several, the nearest centre wins, or the highest
    overlap.
    """
    chosen = np.full(len(found), -1, dtype=np.intp)
    if not len(found) or not len(truth):
        return chosen
    if rule.hit == "centre":
        apart = distances(found, truth, geometry)
        hits = _inside(found, truth) | (apart <= truth.radii(geometry.voxel_volume)[None])
        merit = -apart
    else:
        merit = box_iou(found.boxes, truth.boxes)
        hits = merit >= rule.hit_iou
    free = hits & (found.classes[:, None] == truth.classes[None])
    for index in np.argsort(-found.confidence, kind="stable"):
        candidates = np.flatnonzero(free[index])
        if len(candidates):
            best = candidates[np.argmax(merit[index, candidates])]
            chosen[index] = best
            free[:, best] = False
    return chosen


def distances(found: Lesions, truth: Lesions, geometry: Geometry) -> Floats:
    """(n, m) mm between the centres."""
    ours, theirs = (geometry.to_world(lesions.centres - 0.5) for lesions in (found, truth))
    return np.asarray(np.linalg.norm(ours[:, None] - theirs[None], axis=2))


def box_iou(first: Floats, second: Floats) -> Floats:
    """(n, m) intersection over union of boxes (n, 6) and (m, 6)."""
    both = intersections(first, second)
    sizes = [np.prod(boxes[:, _HIGH] - boxes[:, _LOW], axis=1) for boxes in (first, second)]
    return np.asarray(both / np.maximum(sizes[0][:, None] + sizes[1][None] - both, 1e-12))


def intersections(first: Floats, second: Floats) -> Floats:
    """(n, m) volume that boxes (n, 6) and (m, 6) share."""
    low = np.maximum(first[:, None, _LOW], second[None, :, _LOW])
    high = np.minimum(first[:, None, _HIGH], second[None, :, _HIGH])
    return np.asarray(np.prod(np.maximum(high - low, 0), axis=2))


def _inside(found: Lesions, truth: Lesions) -> NDArray[np.bool_]:
    """(n, m) whether the voxel of a centre is the true lesion's."""
    if truth.numbered is None:
        above = found.centres[:, None] >= truth.boxes[None, :, _LOW]
        return np.asarray((above & (found.centres[:, None] < truth.boxes[None, :, _HIGH])).all(axis=2))
    last = np.asarray(truth.numbered.shape) - 1
    z, y, x = np.clip(np.floor(found.centres).astype(int), 0, last).T
    return np.asarray(truth.numbered[z, y, x][:, None] == np.arange(1, len(truth) + 1)[None])


def least_voxels(rule: Detection, geometry: Geometry) -> float:
    """Of a lesion that counts."""
    return rule.min_volume_ml * 1000 / geometry.voxel_volume


def counted(lesions: Lesions, rule: Detection, geometry: Geometry) -> Lesions:
    """Those that are large enough, at most as many as the recipe reports."""
    large = np.flatnonzero(lesions.sizes >= least_voxels(rule, geometry))
    return (lesions if len(large) == len(lesions) else lesions.chosen(large)).first(rule.most)


_LOW, _HIGH = slice(0, 3), slice(3, 6)
