"""Probabilities that mean what they say: one temperature for all logits (Guo et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Float32 = NDArray[np.float32]

COLDEST, HOTTEST = 0.2, 10.0
_SPREAD = 0.5  # of the logarithm of what one expects of a temperature before anything has been seen
_TINY = float(np.finfo(np.float32).tiny)


def tempered(probabilities: NDArray[Any], temperature: float, *, axis: int = 0, independent: bool = False) -> Float32:
    """What the probabilities would be had the logits been divided by `temperature`.

    The classes lie along `axis`; with `independent` each is a matter of its own (sigmoid), else they add up to 1
    (softmax). Neither the order of the classes nor the side of 0.5 changes, so labels stay what they are.
    """
    values = np.asarray(probabilities, np.float32)
    if temperature == 1:
        return values
    logits = scores(values, independent=independent) / np.float32(temperature)
    if independent:
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    raised = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(raised / raised.sum(axis=axis, keepdims=True), np.float32)


def scores(probabilities: NDArray[Any], *, independent: bool = False) -> Float32:
    """Logits that give these probabilities: what a softmax adds to them does not matter."""
    values = np.asarray(probabilities, np.float32)
    known = np.log(np.maximum(values, _TINY))
    return known - np.log(np.maximum(1 - values, np.float32(1e-7))) if independent else known


def best_temperature(probabilities: NDArray[Any], targets: NDArray[Any], cases: int) -> float:
    """The temperature of least negative log-likelihood, for (n, classes) on what the model has not learnt from.

    `targets` are (n,) classes, or (n, classes) of 0 and 1 where the classes are independent. `cases` says how many of
    the n tell something new (voxels of one image tell about the same): with few, the temperature stays near 1, as all
    being right by chance would otherwise call for certainty.
    """
    independent = targets.ndim == 2
    logits = scores(probabilities, independent=independent).astype(np.float64)
    if independent:
        signed = np.where(targets > 0, -logits, logits)

        def loss(inverse: float) -> float:
            return float(np.logaddexp(0, inverse * signed).mean() * logits.shape[1])
    else:
        # Against the true class: the likelihood needs no more than the others' distances from it.
        away = logits - np.take_along_axis(logits, np.asarray(targets, np.int64)[:, None], axis=1)

        def loss(inverse: float) -> float:
            scaled = inverse * away
            top = scaled.max(axis=1)
            return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))).mean())

    def doubt(logarithm: float) -> float:
        return cases * loss(np.exp(-logarithm)) + (logarithm / _SPREAD) ** 2 / 2

    found = minimize_scalar(doubt, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return round(float(np.exp(found.x)), 4)


def calibration_error(confidence: NDArray[Any], right: NDArray[Any], bins: int = 15) -> float:
    """Expected calibration error: how far confidence and share of right answers lie apart, over equal bins."""
    place = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    gaps = [
        abs(float(np.mean(confidence[place == b]) - np.mean(right[place == b]))) * float(np.mean(place == b))
        for b in range(bins)
        if (place == b).any()
    ]
    return sum(gaps)
