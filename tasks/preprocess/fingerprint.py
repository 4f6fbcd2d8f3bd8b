"""The training split in numbers (nnU-Net's fingerprint), and the cases that lie far from the rest.

Every case is looked at alone (`look_at_case`), so that a night needs to look at the new ones only; the cohort's
numbers follow from what was kept of each. The same cases give the same fingerprint, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import NothingToDoError, PixelError
from models.geometry import Geometry
from models.hashing import content_key
from models.plan import CaseFacts, Fingerprint, IntensityStats, Outlier
from tasks.imaging.compose import missing_channels
from tasks.imaging.crop import box_shape, crop_to, nonzero_box
from tasks.imaging.facts import channel_levels, orientation
from tasks.imaging.masks import sizes

SAMPLES_PER_CASE = 10_000
SAMPLES = 2_000_000
"""Voxels over all cases and channels that the cohort's statistics rest on (nnU-Net: 1e8)."""

LEAST_FOR_OUTLIERS = 5
ZSCORE_LIMIT = 3.0
BOX_LIMIT = 3.0  # interquartile ranges beyond the quartiles: Tukey's "far out"
TOLERATED = 0.1  # of the median: differences below this share are never far


@dataclass(frozen=True, slots=True)
class CaseSample:
    """One case's facts, some of its voxels (c, n) float32, and its class index where it is a classified image.

    `shows` says of each class whether an image that may show several shows it.
    """

    facts: CaseFacts
    voxels: NDArray[np.float32]
    target: int = -1
    shows: tuple[int, ...] = ()


def look_at_case(
    volume: str,
    array: NDArray[Any],
    geometry: Geometry,
    *,
    labels: NDArray[np.uint8] | None = None,
    classes: int = 0,
    regions: bool = False,
    target: int = -1,
    shows: tuple[int, ...] = (),
    seed: int = 0,
) -> CaseSample:
    """What the fingerprint keeps of `array` ([c,] z, y, x). Raises PixelError where a value is not finite.

    Of a missing channel (NaN throughout, see `tasks.imaging.compose`) the voxels are NaN.

    Voxels are drawn from the foreground of `labels`, or from what is not zero where there is none. `median` and
    `iqr` are of the first channel's voxels ≠ 0 (all, where there is a single value), with or without foreground.
    """
    channels = array[None] if array.ndim == 3 else array
    missing = missing_channels(channels)
    there = np.delete(channels, missing, axis=0) if missing else channels
    box = nonzero_box(there)
    inner = crop_to(channels, box).reshape(len(channels), -1)
    rng = np.random.default_rng(int(content_key("sample", volume, seed)[:16], 16))
    flat, places = channels.reshape(len(channels), -1), np.empty(0, np.intp)
    if labels is not None:
        places = np.flatnonzero(labels)
    source = flat if len(places) else inner
    if not len(places):
        places = np.flatnonzero((np.delete(source, missing, axis=0) if missing else source).any(axis=0))
    drawn = rng.choice(places, min(len(places), SAMPLES_PER_CASE), replace=False) if len(places) else np.arange(1)
    voxels = source[:, np.sort(drawn)].astype(np.float32)
    overall = inner[0, rng.integers(0, inner.shape[1], min(inner.shape[1], 5 * SAMPLES_PER_CASE))].astype(np.float64)
    overall = overall[overall != 0] if overall.any() else overall
    if not (np.isfinite(np.delete(voxels, missing, axis=0)).all() and np.isfinite(overall).all()):
        raise PixelError("the image holds NaN or infinite values", reason="non-finite-pixels")
    low, middle, high = np.percentile(overall, (25, 50, 75))
    counts = [] if labels is None else sizes(labels, classes, regions=regions)
    facts = CaseFacts(
        volume=volume,
        shape=geometry.shape,
        spacing=geometry.spacing,
        cropped_shape=box_shape(box),
        class_voxels=tuple(counts),
        median=float(middle),
        iqr=float(high - low),
        orientation=orientation(geometry),
        levels=channel_levels(channels),
    )
    return CaseSample(facts, voxels, target, shows)


def thinned(sample: CaseSample, cases: int, seed: int) -> CaseSample:
    """With its share of the voxels that the statistics of so many cases rest on: what is held of all is bounded."""
    channels, count = sample.voxels.shape
    share = max(1, SAMPLES // (cases * channels))
    if count <= share:
        return sample
    rng = np.random.default_rng(int(content_key("share", sample.facts.volume, seed)[:16], 16))
    return replace(sample, voxels=sample.voxels[:, np.sort(rng.choice(count, share, replace=False))])


def summarise(
    dataset: str,
    modality: str,
    samples: Sequence[CaseSample],
    *,
    classes: int,
    outliers: Literal["none", "zscore", "iqr"] = "iqr",
    seed: int = 0,
) -> Fingerprint:
    """The cohort's fingerprint. `class_counts`: cases that show each class. Raises NothingToDoError without cases."""
    if not samples:
        raise NothingToDoError("no training case could be read", where=dataset, hint="see the quarantine's reasons")
    ordered = sorted(samples, key=lambda s: s.facts.volume)
    cases = tuple(s.facts for s in ordered)
    ratios = [float(np.prod(c.cropped_shape) / np.prod(c.shape)) for c in cases]
    return Fingerprint(
        dataset=dataset,
        modality=modality,
        cases=cases,
        intensities=_intensities(ordered, seed),
        crop_ratio=float(np.median(ratios)),
        class_counts=_class_counts(ordered, classes),
        outliers=find_outliers(cases, outliers),
    )


def _intensities(samples: Sequence[CaseSample], seed: int) -> tuple[IntensityStats, ...]:
    """Per channel, over an equal share of every case."""
    channels = min(len(s.voxels) for s in samples)
    pooled = [thinned(sample, len(samples), seed).voxels[:channels] for sample in samples]
    return tuple(_stats(channel[~np.isnan(channel)]) for channel in np.concatenate(pooled, axis=1))


def _stats(values: NDArray[np.float32]) -> IntensityStats:
    """Zeros of a channel that no case has."""
    values = values if values.size else np.zeros(1, np.float32)
    p005, median, p995 = (float(v) for v in np.percentile(values, (0.5, 50, 99.5)))
    return IntensityStats(
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        minimum=float(values.min()),
        maximum=float(values.max()),
        median=median,
        p005=p005,
        p995=p995,
    )


def _class_counts(samples: Sequence[CaseSample], classes: int) -> tuple[int, ...]:
    counts = [0] * classes
    for sample in samples:
        for index, voxels in enumerate(sample.facts.class_voxels[:classes]):
            counts[index] += voxels > 0
        if 0 <= sample.target < classes:
            counts[sample.target] += 1
        for index, there in enumerate(sample.shows[:classes]):
            counts[index] += there
    return tuple(counts)


# -- outliers ---------------------------------------------------------------------------------------------------

_MEASURES: dict[str, Callable[[CaseFacts], float]] = {
    "median intensity": lambda c: c.median,
    "intensity range": lambda c: c.iqr,
    **{f"spacing {axis}": lambda c, i=i: c.spacing[i] for i, axis in enumerate("zyx")},  # type: ignore[misc]
    **{f"size {axis}": lambda c, i=i: float(c.cropped_shape[i]) for i, axis in enumerate("zyx")},  # type: ignore[misc]
    "foreground volume": lambda c: sum(c.class_voxels) * float(np.prod(c.spacing)),
}


def find_outliers(cases: Sequence[CaseFacts], method: Literal["none", "zscore", "iqr"]) -> tuple[Outlier, ...]:
    """Cases far from the rest, by measure: |z| > 3, or more than 3 interquartile ranges off the quartiles.

    Fewer than five cases have no rest to be far from.
    """
    if method == "none" or len(cases) < LEAST_FOR_OUTLIERS:
        return ()
    found = []
    for measure, of in _MEASURES.items():
        values = np.array([of(case) for case in cases])
        low, high = _range(values, method)
        expected = f"{low:.4g} to {high:.4g}"
        found += [
            Outlier(volume=case.volume, measure=measure, value=float(value), expected=expected)
            for case, value in zip(cases, values, strict=True)
            if value < low or value > high
        ]
    return tuple(sorted(found, key=lambda o: (o.volume, o.measure)))


def _range(values: NDArray[np.float64], method: str) -> tuple[float, float]:
    if method == "zscore":
        centre, reach = float(values.mean()), ZSCORE_LIMIT * float(values.std())
        reach = max(reach, TOLERATED * abs(centre))
        return centre - reach, centre + reach
    first, middle, third = np.percentile(values, (25, 50, 75))
    reach = max(BOX_LIMIT * float(third - first), TOLERATED * abs(float(middle)))
    return float(first) - reach, float(third) + reach
