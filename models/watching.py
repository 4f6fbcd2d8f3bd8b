"""What has moved since a model began to serve, and which study a label would teach it most about."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Noun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shift(_Noun):
    """One property of the last `cases` beside its reference: what training saw (input), what the model said at first
    (output), or how good it was on its test patients (quality).

    `value` is of its own kind: `ks` a p value (Kolmogorov and Smirnov's test, Holm over all measures), which is too low
    below `threshold`; `psi` (population stability index) and `fall` (of the metric) are too high from it on.
    """

    kind: Literal["input", "output", "quality"]
    measure: str
    how: Literal["ks", "psi", "fall"]
    value: float
    threshold: float
    cases: int = Field(ge=0)
    told: str = ""

    @property
    def shifted(self) -> bool:
        """Whether it is too far."""
        return self.value < self.threshold if self.how == "ks" else self.value >= self.threshold


class Watched(_Noun):
    """A serving model as it was last looked at. With too few predictions there are no shifts, and `note` says so."""

    name: str
    version: str
    package: str
    cases: int
    shifts: tuple[Shift, ...] = ()
    note: str = ""

    @property
    def alerts(self) -> tuple[Shift, ...]:
        """What has moved too far."""
        return tuple(shift for shift in self.shifts if shift.shifted)


class Suggestion(_Noun):
    """A study that is worth a label, and why: 0 to 1 each, and together."""

    study: str
    volume: str
    score: float
    uncertainty: float
    novelty: float
    why: str
