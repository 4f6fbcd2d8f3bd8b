"""Which series of a study make one case of many channels: one rule for datasets and for predictions.

A volume stands for a channel where it meets that channel's rules and no other's. Partners are of the reference's
patient and study and, unless they are registered, lie in its frame of reference. Of several candidates the one in the
reference's frame is taken, then the closest in spacing, then the newest; the others are told.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from models.recipe import Images
from models.recipe.images import Pictured


class Stored(Pictured, Protocol):
    """What the rule looks at: a volume's row in the catalog."""

    volume: Any
    series: Any
    series_uid: Any
    study: Any
    patient: Any
    frame_of_reference: Any
    spacing_y: Any
    spacing_x: Any
    created_at: Any


V = TypeVar("V", bound=Stored)


@dataclass(frozen=True, slots=True)
class Assembled(Generic[V]):
    """A case: the reference, and for each further channel its volume, or None where it is missing."""

    reference: V
    partners: tuple[V | None, ...] = ()

    @property
    def channels(self) -> tuple[str, ...]:
        """The partners' keys, "" where one is missing."""
        return tuple("" if partner is None else partner.volume for partner in self.partners)


@dataclass(frozen=True, slots=True)
class Left:
    """A volume that is no case and no part of one, or was passed over for another; and why."""

    volume: str
    reason: str


def assemble(images: Images, volumes: Iterable[V]) -> tuple[list[Assembled[V]], list[Left]]:
    """The cases among `volumes`, and what is left out. Without channels each volume that is meant is a case."""
    if not images.channels:
        kept, left = list[Assembled[V]](), list[Left]()
        for volume in volumes:  # of a million, those that are meant are kept
            if reason := images.refusal(volume):
                left.append(Left(volume.volume, reason))
            else:
                kept.append(Assembled(volume))
        return kept, left
    return _Assembly(images, volumes).cases()


def current(volumes: Iterable[V], preferred: Collection[str] = ()) -> list[V]:
    """Of each series that was received more than once, the volumes of the last reception, or of a `preferred` one
    (by volume)."""
    receptions: dict[str, list[V]] = defaultdict(list)
    for volume in volumes:
        receptions[volume.series_uid].append(volume)
    kept = []
    for several in receptions.values():
        last = max(several, key=lambda v: (v.volume in preferred, v.created_at, v.series))
        kept += [volume for volume in several if volume.series == last.series]
    return kept


class _Assembly(Generic[V]):
    def __init__(self, images: Images, volumes: Iterable[V]) -> None:
        self.images, self.left = images, list[Left]()
        self.by_study: dict[tuple[str, str], list[list[V]]] = {}
        for volume in volumes:
            self._sort_in(volume)

    def _sort_in(self, volume: V) -> None:
        refusals = [channel.refusal(volume) for channel in self.images.channels]
        fitting = [index for index, reason in enumerate(refusals) if reason is None]
        if len(fitting) == 1:
            channels = self.by_study.setdefault((volume.patient, volume.study), [[] for _ in refusals])
            channels[fitting[0]].append(volume)
        elif fitting:
            self._leave(volume, "fits-several-channels")
        else:
            reasons = [reason for reason in refusals if reason and reason != "other-modality"]
            self._leave(volume, reasons[0] if reasons else "other-modality")

    def _leave(self, volume: V, reason: str) -> None:
        self.left.append(Left(volume.volume, reason))

    def cases(self) -> tuple[list[Assembled[V]], list[Left]]:
        """Study by study."""
        cases: list[Assembled[V]] = []
        for references, *others in self.by_study.values():
            found = [case for reference in references if (case := self._case(reference, others))]
            used = {key for case in found for key in case.channels}
            for volume in (v for channel in others for v in channel if v.volume not in used):
                near = any(self._comparable(case.reference, volume) for case in found)
                apart = "other-series-taken" if near else "other-frame-of-reference"
                self._leave(volume, apart if found else "no-case-of-its-study")
            cases += found
        return cases, self.left

    def _case(self, reference: V, others: Sequence[Sequence[V]]) -> Assembled[V] | None:
        """The reference with its partners; None where one is missing that must be there."""
        partners: list[V | None] = []
        for channel, candidates in zip(self.images.channels[1:], others, strict=True):
            near = [c for c in current(candidates) if self._comparable(reference, c)]
            if not near and self.images.missing == "refuse":
                why = "other-frame-of-reference" if candidates else "missing-channel"
                self._leave(reference, f"{why}-{channel.name}")
                return None
            partners.append(min(near, key=lambda c: _rank(reference, c)) if near else None)
        return Assembled(reference, tuple(partners))

    def _comparable(self, reference: V, candidate: V) -> bool:
        return self.images.registration == "rigid" or _same_frame(reference, candidate)


def _same_frame(one: Stored, other: Stored) -> bool:
    return one.frame_of_reference is not None and one.frame_of_reference == other.frame_of_reference


def _rank(reference: Stored, candidate: Stored) -> tuple[bool, float, float, str]:
    """The least is the best. Spacings are compared to a hundredth: series of one protocol differ by rounding."""
    apart = sum(
        abs(math.log(getattr(candidate, f"spacing_{axis}") / getattr(reference, f"spacing_{axis}"))) for axis in "zyx"
    )
    newest = -candidate.created_at.timestamp()
    return not _same_frame(reference, candidate), round(apart, 2), newest, candidate.volume
