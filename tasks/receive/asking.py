"""What is asked of an archive, and what it has: the words that its interfaces share. Identifiers are original ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Protocol

from models.errors import ServiceUnavailableError
from tasks.receive.reception import Reception

INCOMPLETE = "retrieve-incomplete"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Studies of the time since `earliest` (in the archive's own time) with `modality`, or those of `study_uids`."""

    earliest: datetime | None = None
    modality: str | None = None
    study_uids: tuple[str, ...] = ()

    @property
    def dates(self) -> str:
        """DICOM's range matching from the first day on; open at its end, as clocks differ."""
        return f"{self.earliest:%Y%m%d}-" if self.earliest else ""

    def fits(self, study: FoundStudy) -> bool:
        """Looked at once more on our side: many archives pass over what they are asked for."""
        if self.study_uids and study.uid not in self.study_uids:
            return False
        if self.modality and study.modalities and self.modality not in study.modalities:
            return False
        return self.earliest is None or study.begun is None or study.begun >= self.earliest


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study in an archive. `begun` is None where it does not say; without a time it is the end of the day."""

    uid: str
    begun: datetime | None = None
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundInstance:
    """`sop_class` is empty where the archive does not say."""

    uid: str
    sop_class: str = ""


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """`instances` is empty where the archive does not list them."""

    uid: str
    modality: str = ""
    instances: tuple[FoundInstance, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """What of a series is to be fetched: all of it, or only these instances. Empty `instances`: nobody knows which."""

    series: str
    instances: tuple[FoundInstance, ...]
    whole: bool
    modality: str = ""


@dataclass(slots=True)
class Fetched:
    """What came of an order."""

    instances: int = 0
    new: int = 0
    failed: list[tuple[str, str, int]] = field(default_factory=list)  # reason, what, instances

    def failure(self, reason: str, what: str, instances: int = 0) -> None:
        """Note what did not come, in words without identifiers."""
        self.failed.append((reason, what, instances))


class Archive(Protocol):
    """One way to ask and to fetch. All methods raise ServiceUnavailableError or SettingsError."""

    def studies(self, wanted: Wanted) -> Iterable[FoundStudy]:
        """Those that may fit."""

    def series(self, study: str) -> Sequence[FoundSeries]:
        """All of a study."""

    def fetch(self, study: str, orders: Sequence[Order], reception: Reception) -> Fetched:
        """Bring the instances to the reception. What of them does not come is told, not raised."""

    def close(self) -> None:
        """Give the connections back."""


class LostError(ServiceUnavailableError):
    """A connection that ended while something was fetched; others may still be opened."""


def when(day: str, moment: str) -> datetime | None:
    """DICOM's date and time (DA, TM) as one; the end of the day where there is no time."""
    if not (found := re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", day.strip())):
        return None
    try:
        begun = date(*map(int, found.groups()))
    except ValueError:
        return None
    clock = re.match(r"(\d{2}):?(\d{2})?:?(\d{2})?", moment.strip())
    if not clock:
        return datetime.combine(begun, datetime.max.time())
    hours, minutes, seconds = (int(part or 0) for part in clock.groups())
    return datetime.combine(begun, datetime.min.time()) + timedelta(hours=hours, minutes=minutes, seconds=seconds)
