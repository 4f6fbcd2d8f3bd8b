"""The account of all studies ever received: each is delivered, quarantined or waiting, and one of these alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final


class Standing(StrEnum):
    """How a study stands: by what is on its way in, then its latest version's outcome, then its deliveries."""

    SENT = "sent"
    """Every result of it is with every destination."""
    NOTHING_TO_SEND = "nothing_to_send"
    """Taken in, and done: no model is for it, no series of it fits, it brought labels, or there is no destination."""
    QUARANTINED = "quarantined"
    """Nothing of it could be used; the quarantine says why. One bad series of a good study is not enough."""
    COMING_IN = "coming_in"
    """Instances have come that no version of it holds yet."""
    TO_BE_ANALYSED = "to_be_analysed"
    """Whole; its run has not ended."""
    IN_OUTBOX = "in_outbox"
    """Analysed; a result is not with its destination yet, and is tried again."""
    REFUSED = "refused"
    """Analysed; a destination refuses a result for good: somebody has to look."""
    FAILED = "failed"
    """Its run failed: somebody has to look."""
    ASTRAY = "astray"
    """None of these: nothing is under way that would bring it on."""


DELIVERED: Final = (Standing.SENT, Standing.NOTHING_TO_SEND)
WAITING: Final = (
    Standing.COMING_IN,
    Standing.TO_BE_ANALYSED,
    Standing.IN_OUTBOX,
    Standing.REFUSED,
    Standing.FAILED,
)
_WORDS: Final = {
    Standing.SENT: "with every destination",
    Standing.IN_OUTBOX: "in the outbox",
    Standing.REFUSED: "refused by a destination",
}


@dataclass(frozen=True, slots=True)
class Account:
    """Studies by standing at one moment. Where it holds, `received = delivered + quarantined + waiting`.

    `instances`: all that were received with them. `unfiled`: instances that were set aside as they came, since they
    name no study or are not what they were sent as. They belong to no study here: one of which the rest is good is
    counted by the rest.
    """

    received: int
    sent: int = 0
    nothing_to_send: int = 0
    quarantined: int = 0
    coming_in: int = 0
    to_be_analysed: int = 0
    in_outbox: int = 0
    refused: int = 0
    failed: int = 0
    astray: int = 0
    instances: int = 0
    unfiled: int = 0

    @classmethod
    def of(cls, received: int, standings: Mapping[Standing, int], *, instances: int = 0, unfiled: int = 0) -> Account:
        """From how many stand how."""
        each = {standing.value: standings.get(standing, 0) for standing in Standing}
        return cls(received=received, instances=instances, unfiled=unfiled, **each)

    @property
    def delivered(self) -> int:
        """All that was to be sent of them is where it was to go; of some that is nothing."""
        return sum(map(self.how_many, DELIVERED))

    @property
    def waiting(self) -> int:
        """For more of them, for their turn, for a destination, or for somebody."""
        return sum(map(self.how_many, WAITING))

    @property
    def unaccounted(self) -> int:
        """More than 0: so many are in none of the three. Less: so many are counted twice."""
        return self.received - self.delivered - self.quarantined - self.waiting

    @property
    def holds(self) -> bool:
        """Whether every study is in exactly one of the three."""
        return self.unaccounted == 0 and self.astray == 0

    def how_many(self, standing: Standing) -> int:
        """Studies that stand so."""
        return int(getattr(self, standing.value))

    def parts(self, standings: tuple[Standing, ...]) -> str:
        """What a sum is made of, without what is none."""
        told = [
            f"{n:,} {_WORDS.get(one, one.value.replace('_', ' '))}" for one in standings if (n := self.how_many(one))
        ]
        return ", ".join(told) or "none"

    def to_json(self) -> dict[str, int | bool]:
        """Every figure."""
        sums = {"delivered": self.delivered, "waiting": self.waiting, "unaccounted": self.unaccounted}
        return {**asdict(self), **sums, "holds": self.holds}

    def __str__(self) -> str:
        parts = f"{self.delivered:,} delivered + {self.quarantined:,} quarantined + {self.waiting:,} waiting"
        lost = "" if self.holds else f" + {self.unaccounted:,} UNACCOUNTED FOR: `nocturne doctor` says which"
        return f"{self.received:,} = {parts}{lost}"
