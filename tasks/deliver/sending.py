"""What every way of sending has in common: what is handed over, what came of it, and how failures are told.

A failure that may heal is raised as ServiceUnavailableError, and the whole delivery is tried again later. One that
will not is told per object in `Sent.refused`, so that the rest still arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.errors import ServiceUnavailableError
from models.hospital import Destination
from tasks.deliver.objects import Result


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of one attempt. `accepted` are SOP Instance UIDs that are there; `refused` says why others are not."""

    accepted: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    safe: bool = False  # the other side has committed itself to keep them

    @property
    def detail(self) -> str:
        """In words, without any identity."""
        return "; ".join((*self.refused, *self.notes))


class Sender(Protocol):
    """One way to one destination."""

    def send(self, results: Sequence[Result], *, again: bool) -> Sent:
        """Send what is not there. `again`: an earlier attempt may have brought some of it; look before sending.

        Raises ServiceUnavailableError where a later attempt may succeed.
        """
        ...


def away(destination: Destination, what: str, *, hint: str | None = None) -> ServiceUnavailableError:
    """The destination cannot be used just now, and why."""
    return ServiceUnavailableError(what, where=destination.name, hint=hint, reason="destination-away")
