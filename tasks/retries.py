"""Which failures a door tries again, and when: plain values, so that they can be tested without a server."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from models.errors import TransientError, is_transient

RETRY_DELAYS: Final[list[float]] = [2, 8, 30, 120]
"""Seconds: a server that is started anew takes a minute or two where its host does other work."""
RETRIES: Final = len(RETRY_DELAYS)
RETRY_JITTER: Final = 0.5

P = ParamSpec("P")
R = TypeVar("R")
_log = logging.getLogger(__name__)


def may_heal(task: Any, run: Any, state: Any) -> bool:
    """Whether a failed state's exception is of the transient branch."""
    # A task that persists its results has its exception wrapped.
    error = getattr(state.data, "result", state.data)
    return isinstance(error, BaseException) and is_transient(error)


def patiently(work: Callable[P, R]) -> Callable[P, R]:
    """`work` tried again as doors are: for what a flow does itself, between its doors."""

    @wraps(work)
    def tried(*arguments: P.args, **named: P.kwargs) -> R:
        for delay in RETRY_DELAYS:
            try:
                return work(*arguments, **named)
            except TransientError as error:
                _log.warning("%s; tried again in %d s", error, delay)
                time.sleep(delay * random.uniform(1, 1 + RETRY_JITTER))  # noqa: S311 - nothing secret
        return work(*arguments, **named)

    return tried
