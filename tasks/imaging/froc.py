"""Free-response figures over many images: FROC, average precision, and what holds from one confidence on.

Every figure is a function of weights, one per image, so that one definition serves the point estimate (all ones) and
the bootstrap (how often each image was drawn).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Figures = Callable[[Floats], Floats]
"""(resamples, images) weights → (resamples, figures); NaN without a true lesion."""

RATES: Final = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False positives an image at which sensitivity is read (van Ginneken et al. 2010, LUNA16)."""
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Marks:
    """What was marked in some images: for each mark its image's place, its confidence, and whether it found a lesion.

    `lesions` (images,) counts the true lesions. No lesion is found twice.
    """

    image: NDArray[np.intp]
    confidence: Floats
    right: NDArray[np.bool_]
    lesions: Floats

    @classmethod
    def of(
        cls, image: Sequence[int], confidence: Sequence[float], right: Sequence[bool], lesions: Sequence[int]
    ) -> Marks:
        """From plain values."""
        return cls(
            np.asarray(image, np.intp),
            np.asarray(confidence, float),
            np.asarray(right, bool),
            np.asarray(lesions, float),
        )


def froc(marks: Marks) -> Figures:
    """Sensitivity at each of RATES, read off the curve by linear interpolation as LUNA16 does; then their mean."""

    def figures(weights: Floats) -> Floats:
        found = np.concatenate([_at_rates(*_curve(marks, block)) for block in _blocks(weights, len(marks.image))])
        return np.concatenate([found, found.mean(axis=1, keepdims=True)], axis=1)

    return figures


def average_precision(marks: Marks) -> Figures:
    """Σ (recall step × precision) over falling confidence; lesions that no mark finds are never recalled."""

    def figures(weights: Floats) -> Floats:
        parts = []
        for block in _blocks(weights, len(marks.image)):
            hits, others, lesions, _ = _sums(marks, block)
            steps = np.diff(hits, axis=1, prepend=0.0)
            precision = hits / np.maximum(hits + others, 1e-300)
            parts.append(_ratio((steps * precision).sum(axis=1), lesions))
        return np.concatenate(parts)[:, None]

    return figures


def from_confidence(marks: Marks, threshold: float) -> Figures:
    """Sensitivity, precision and false positives an image of the marks of at least this confidence.

    Without a mark the precision is NaN.
    """
    sure = marks.confidence >= threshold
    size = len(marks.lesions)
    hits, others = (
        np.bincount(marks.image[sure & kind], minlength=size).astype(float) for kind in (marks.right, ~marks.right)
    )

    def figures(weights: Floats) -> Floats:
        found, wrong = weights @ hits, weights @ others
        parts = (_ratio(found, weights @ marks.lesions), _ratio(found, found + wrong), wrong / weights.sum(axis=1))
        return np.stack(parts, axis=1)

    return figures


def curve(marks: Marks) -> tuple[Floats, Floats]:
    """False positives an image and sensitivity, one point for each confidence, from (0, 0) on."""
    rates, sensitivity = _curve(marks, np.ones((1, len(marks.lesions))))
    return rates[0], sensitivity[0]


def best_threshold(marks: Marks) -> float | None:
    """The confidence with the highest F1 over lesions, midway to the next lower one; None without a right mark."""
    if not marks.right.any():
        return None
    values = np.unique(marks.confidence)[::-1]
    hits = np.array([np.count_nonzero(marks.right & (marks.confidence >= v)) for v in values])
    called = np.array([np.count_nonzero(marks.confidence >= v) for v in values])
    best = int(np.argmax(2 * hits / (called + marks.lesions.sum())))
    below = values[best + 1] if best + 1 < len(values) else values[best] * 0.9
    return float((values[best] + below) / 2)


def _curve(marks: Marks, weights: Floats) -> tuple[Floats, Floats]:
    """(r, t + 1) false positives an image and sensitivity."""
    hits, others, lesions, images = _sums(marks, weights)
    start = np.zeros((len(weights), 1))
    sensitivity = np.concatenate([start, hits], axis=1) / np.where(lesions > 0, lesions, np.nan)[:, None]
    return np.concatenate([start, others], axis=1) / images[:, None], sensitivity


def _sums(marks: Marks, weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(r, t) right and wrong marks from each confidence on; (r,) true lesions and images."""
    lesions, images = weights @ marks.lesions, weights.sum(axis=1)
    if not len(marks.image):
        none = np.zeros((len(weights), 1))
        return none, none, lesions, images
    order = np.argsort(-marks.confidence, kind="stable")
    falling = marks.confidence[order]
    starts = np.flatnonzero(np.r_[True, np.diff(falling) < 0])
    each, right = weights[:, marks.image[order]], marks.right[order]
    hits = np.cumsum(np.add.reduceat(each * right, starts, axis=1), axis=1)
    others = np.cumsum(np.add.reduceat(each * ~right, starts, axis=1), axis=1)
    return hits, others, lesions, images


def _at_rates(rates: Floats, sensitivity: Floats) -> Floats:
    """(r, 7); beyond the last point the curve stays where it is."""
    rows, last = np.arange(len(rates)), rates.shape[1] - 1
    read = []
    for rate in RATES:
        below = (rates <= rate).sum(axis=1) - 1
        above = np.minimum(below + 1, last)
        gap = rates[rows, above] - rates[rows, below]
        share = np.divide(rate - rates[rows, below], gap, out=np.zeros(len(rows)), where=gap > 0)
        low, high = sensitivity[rows, below], sensitivity[rows, above]
        read.append(low + (high - low) * share)
    return np.stack(read, axis=1)


def _blocks(weights: Floats, marks: int) -> Iterator[Floats]:
    """Some resamples at a time: there may be many marks an image."""
    step = max(1, _BLOCK_BYTES // (8 * max(1, marks)))
    for start in range(0, len(weights), step):
        yield weights[start : start + step]


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
