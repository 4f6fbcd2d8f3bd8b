"""A state of runs beside Prefect's own: what a run needs is away."""

from __future__ import annotations

from typing import Any, Final

import httpx
from prefect.client.schemas.objects import State
from prefect.states import Crashed

from models.errors import NocturneError, is_away

AWAY: Final = "Away"
"""The name of the state. The watchdog starts such a run again, for a day."""


def caused_by_absence(error: Exception) -> bool:
    """Whether a store, a database or Prefect's own server is what failed."""
    refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code >= 500
    return refused or isinstance(error, httpx.TransportError) or is_away(error)


def away(error: Exception) -> State[Any]:
    """The end of a run that goes on by itself when what it needs is back."""
    return Crashed(name=AWAY, message=said(error))


def said(error: Exception) -> str:
    """Of a foreign error its name alone: its text may quote the images."""
    return str(error) if isinstance(error, NocturneError) else type(error).__name__
