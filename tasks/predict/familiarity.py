"""Whether an image looks like those that the model was trained on; told in words where it does not.

What training saw is the package's fingerprint. An image passes within the range seen and some slack: the network bears
as much zoom and contrast as augmentation gave it, and a small cohort's range is narrower than the world's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from models.package import ModelPackage
from models.plan import CaseFacts, Fingerprint, Plan
from models.volume import Volume
from tasks.imaging.facts import (
    NOTHING,
    PERCENTILES,
    channel_name,
    extent,
    slice_plane,
    trained_on,
    visible_level,
    visible_range,
)

SPACING_SLACK = 1.25
"""Factor beyond the range of spacings."""
SIZE_SLACK = 1.5
"""Factor beyond the range of fields of view."""
RANGE_SLACK = 0.5
"""Share of the range of a percentile that it may lie beyond it, …"""
CONTRAST_SLACK = 0.25
"""… and share of a typical case's contrast (from its 5th to its 95th percentile) on top."""

_UNITS = {"HU": "HU", "SUVbw": "SUVbw", "BQML": "Bq/mL", "CNTS": "counts"}


@dataclass(frozen=True, slots=True)
class Check:
    """One property beside what training saw of it: from `low` to `high` (slack not counted), or one of `known`."""

    name: str
    value: float | str
    low: float | None
    high: float | None
    passed: bool
    unit: str = ""
    known: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """`spacing z 5 mm, trained on 0.9–1.2 mm`."""
        if self.low is None or self.high is None or isinstance(self.value, str):
            return f"{self.name} {self.value}, trained on {', '.join(self.known)}"
        seen = _number(self.low)
        if _number(self.high) != seen:
            seen += f"{'–' if self.low >= 0 else ' to '}{_number(self.high)}"
        return f"{self.name} {_number(self.value)}{self._after}, trained on {seen}{self._after}"

    @property
    def _after(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the words."""
        return asdict(self) | {"known": list(self.known), "told": self.told}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        values = {k: v for k, v in data.items() if k != "told"}
        return cls(**(values | {"known": tuple(values.get("known", ()))}))


def check_image(package: ModelPackage, volume: Volume, facts: CaseFacts) -> tuple[Check, ...]:
    """Every check that the package's fingerprint allows: none for a package without one. Raises PackageError.

    `facts` are the volume's, as `tasks.imaging.facts.image_facts` measures them.
    """
    seen = trained_on(package)
    if seen is None:
        return ()
    return (
        *_kinds(package, seen, volume.modality, facts),
        *_sizes(seen.cases, facts),
        *_intensities(seen.cases, package.plan, facts, volume.unit),
    )


def _kinds(package: ModelPackage, seen: Fingerprint, modality: str, facts: CaseFacts) -> Iterator[Check]:
    modalities = tuple(sorted({seen.modality, *package.recipe.images.modalities}))
    yield Check("modality", modality, None, None, modality in modalities, known=modalities)
    codes = {case.orientation for case in seen.cases}
    if codes and "" not in codes:
        found = facts.orientation
        known = tuple(_orientation(code) for code in sorted(codes))
        yield Check("orientation", _orientation(found), None, None, found in codes, known=known)


def _sizes(cases: Sequence[CaseFacts], facts: CaseFacts) -> Iterator[Check]:
    for axis, name in enumerate("zyx"):
        # A single slice has neither a distance to the next nor a depth.
        several = [case for case in cases if case.shape[axis] > 1]
        if facts.shape[axis] > 1 and several:
            values = [case.spacing[axis] for case in several]
            yield _by_factor(f"spacing {name}", facts.spacing[axis], values, SPACING_SLACK)
    for axis, name in enumerate("zyx"):
        values = [extent(case)[axis] for case in cases]
        if values and (facts.shape[axis] > 1 or any(case.shape[axis] > 1 for case in cases)):
            yield _by_factor(f"size {name}", extent(facts)[axis], values, SIZE_SLACK)


def _by_factor(name: str, value: float, values: Sequence[float], slack: float) -> Check:
    low, high = min(values), max(values)
    return Check(name, value, low, high, low / slack <= value <= high * slack, "mm")


def _intensities(cases: Sequence[CaseFacts], plan: Plan, facts: CaseFacts, unit: str) -> Iterator[Check]:
    found = facts.levels
    usable = [case.levels for case in cases if len(case.levels) == len(found)]
    # Series that are channels of one image have units of their own.
    unit = "" if plan.channels else _UNITS.get(unit, "")
    for channel, here in enumerate(found if usable else ()):
        seen = visible_range(plan.prepare.normalisation, channel)
        known = [levels[channel] for levels in usable]
        if channel:
            # A further channel may be missing, here or there: then there is nothing to compare.
            known = [levels for levels in known if levels != NOTHING]
            if not known or here == NOTHING:
                continue
        contrast = float(np.median([visible_level(k, "p95", seen) - visible_level(k, "p05", seen) for k in known]))
        for name, key in PERCENTILES.items():
            values = [visible_level(k, key, seen) for k in known]
            yield _by_reach(
                f"{name} of {channel_name(plan, channel, len(found))}",
                visible_level(here, key, seen),
                values,
                RANGE_SLACK * (max(values) - min(values)) + CONTRAST_SLACK * contrast,
                unit,
            )


def _by_reach(name: str, value: float, values: Sequence[float], reach: float, unit: str) -> Check:
    low, high = min(values), max(values)
    return Check(name, value, low, high, low - reach <= value <= high + reach, unit)


def _orientation(code: str) -> str:
    return f"{slice_plane(code)} ({code})"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
