"""What every door is: a Prefect task with the house's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE

from tasks.retries import RETRIES, RETRY_DELAYS, RETRY_JITTER, may_heal

P = ParamSpec("P")
R = TypeVar("R")


def door(
    name: str,
    *,
    run_name: str | None = None,
    minutes: float | None = 60,
    persist: bool = True,
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that tries again what may heal, ends after `minutes`, and keeps its result as JSON if `persist`.

    `minutes` is None for doors that are mapped over threads: Prefect cannot interrupt those.

    `run_name` may hold parameters in braces: references only, they are pseudonyms. Prefect's cache is off: the stores
    know by content what is done, also for another flow and on another machine. There are no tags: for a task that has
    some, Prefect asks the server for a concurrency slot before every run, which took up to two seconds.
    """

    def made(function: Callable[P, R]) -> Task[P, R]:
        return Task(
            function,
            name=name,
            task_run_name=run_name,
            cache_policy=NO_CACHE,
            retries=RETRIES,
            retry_delay_seconds=RETRY_DELAYS,
            retry_jitter_factor=RETRY_JITTER,
            retry_condition_fn=may_heal,
            timeout_seconds=minutes and 60 * minutes,
            persist_result=persist,
            result_serializer="json" if persist else None,
        )

    return made
