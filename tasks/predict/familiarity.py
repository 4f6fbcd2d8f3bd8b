"""Whether an image looks like those that the model was trained on; told in words where it does not.

What training saw is the package's fingerprint. An image passes within the range seen and some slack: the network bears
as much zoom and contrast as augmentation gave it, and a small cohort's range is narrower than the world's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from pydantic import ValidationError

from models.errors import PackageError
from models.package import ModelPackage
from models.plan import CaseFacts, ChannelLevels, Fingerprint, Normalisation, Plan
from models.volume import Volume
from tasks.imaging.facts import NOTHING, channel_levels, orientation, slice_plane

SPACING_SLACK = 1.25
"""Factor beyond the range of spacings."""
SIZE_SLACK = 1.5
"""Factor beyond the range of fields of view."""
RANGE_SLACK = 0.5
"""Share of the range of a percentile that it may lie beyond it, …"""
CONTRAST_SLACK = 0.25
"""… and share of a typical case's contrast (from its 5th to its 95th percentile) on top."""

_PERCENTILES = {"5th percentile": "p05", "median": "median", "95th percentile": "p95"}
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


def check_image(package: ModelPackage, volume: Volume) -> tuple[Check, ...]:
    """Every check that the package's fingerprint allows: none for a package without one. Raises PackageError."""
    if not package.fingerprint:
        return ()
    try:
        seen = Fingerprint.model_validate(package.fingerprint)
    except ValidationError as error:
        raise PackageError(
            f"the package's fingerprint cannot be read ({error.error_count()} faults)",
            where=package.key,
            hint="it comes from another version: train again or roll back",
        ) from None
    return (
        *_kinds(package, seen, volume),
        *_sizes(seen.cases, volume),
        *_intensities(seen.cases, package.plan, volume),
    )


def _kinds(package: ModelPackage, seen: Fingerprint, volume: Volume) -> Iterator[Check]:
    modalities = tuple(sorted({seen.modality, *package.recipe.images.modalities}))
    yield Check("modality", volume.modality, None, None, volume.modality in modalities, known=modalities)
    codes = {case.orientation for case in seen.cases}
    if codes and "" not in codes:
        found = orientation(volume.geometry)
        known = tuple(_orientation(code) for code in sorted(codes))
        yield Check("orientation", _orientation(found), None, None, found in codes, known=known)


def _sizes(cases: Sequence[CaseFacts], volume: Volume) -> Iterator[Check]:
    geometry = volume.geometry
    for axis, name in enumerate("zyx"):
        # A single slice has neither a distance to the next nor a depth.
        several = [case for case in cases if case.shape[axis] > 1]
        if geometry.shape[axis] > 1 and several:
            values = [case.spacing[axis] for case in several]
            yield _by_factor(f"spacing {name}", geometry.spacing[axis], values, SPACING_SLACK)
    for axis, name in enumerate("zyx"):
        values = [case.shape[axis] * case.spacing[axis] for case in cases]
        if values and (geometry.shape[axis] > 1 or any(case.shape[axis] > 1 for case in cases)):
            yield _by_factor(f"size {name}", geometry.extent[axis], values, SIZE_SLACK)


def _by_factor(name: str, value: float, values: Sequence[float], slack: float) -> Check:
    low, high = min(values), max(values)
    return Check(name, value, low, high, low / slack <= value <= high * slack, "mm")


def _intensities(cases: Sequence[CaseFacts], plan: Plan, volume: Volume) -> Iterator[Check]:
    found = channel_levels(volume.array)
    usable = [case.levels for case in cases if len(case.levels) == len(found)]
    # Series that are channels of one image have units of their own.
    unit = "" if plan.channels else _UNITS.get(volume.unit, "")
    for channel, here in enumerate(found if usable else ()):
        low, high = _visible(plan.prepare.normalisation, channel)
        known = [levels[channel] for levels in usable]
        if channel:
            # A further channel may be missing, here or there: then there is nothing to compare.
            known = [levels for levels in known if levels != NOTHING]
            if not known or here == NOTHING:
                continue
        contrast = float(np.median([_clipped(k, low, high, "p95") - _clipped(k, low, high, "p05") for k in known]))
        for name, key in _PERCENTILES.items():
            values = [_clipped(k, low, high, key) for k in known]
            yield _by_reach(
                f"{name} of {_named(plan, channel)}" if len(found) > 1 else f"{name} of intensities",
                _clipped(here, low, high, key),
                values,
                RANGE_SLACK * (max(values) - min(values)) + CONTRAST_SLACK * contrast,
                unit,
            )


def _named(plan: Plan, channel: int) -> str:
    return plan.channels[channel] if channel < len(plan.channels) else f"channel {channel + 1}"


def _by_reach(name: str, value: float, values: Sequence[float], reach: float, unit: str) -> Check:
    low, high = min(values), max(values)
    return Check(name, value, low, high, low - reach <= value <= high + reach, unit)


def _visible(how: Sequence[Normalisation], channel: int) -> tuple[float, float]:
    """The range outside of which the network sees no difference: a scanner's padding, say."""
    scheme = how[channel] if channel < len(how) else Normalisation(scheme="none")
    return (scheme.low, scheme.high) if scheme.scheme in ("ct", "window") else (-np.inf, np.inf)


def _clipped(levels: ChannelLevels, low: float, high: float, key: str) -> float:
    return float(np.clip(getattr(levels, key), low, high))


def _orientation(code: str) -> str:
    return f"{slice_plane(code)} ({code})"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
