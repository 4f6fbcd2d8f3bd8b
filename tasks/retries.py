"""Which failures a door tries again, and when: plain values, so that they can be tested without a server."""

from __future__ import annotations

from typing import Any, Final

from models.errors import is_transient

RETRIES: Final = 3
RETRY_DELAYS: Final[list[float]] = [2, 8, 30]
RETRY_JITTER: Final = 0.5


def may_heal(task: Any, run: Any, state: Any) -> bool:
    """Whether a failed state's exception is of the transient branch."""
    # A task that persists its results has its exception wrapped.
    error = getattr(state.data, "result", state.data)
    return isinstance(error, BaseException) and is_transient(error)
