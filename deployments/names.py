"""What things are called on the Prefect server."""

from __future__ import annotations

from typing import Final

WORK_POOL: Final = "nocturne"
ARRIVALS_POOL: Final = "nocturne-arrivals"
TAG: Final = "nocturne"
FROM_SETTINGS: Final = "nightly"
"""Tag of a retraining that the settings name: it is paused once they no longer do."""

ARRIVALS: Final = "study arrived/arrivals"
BY_HAND: Final = "by-hand"
REGULARLY: Final = "regularly"

SILENT: Final = "no sign of life reached the server"
"""The automation's message for a lost run. It may err where the server itself was away: the watchdog looks again."""
