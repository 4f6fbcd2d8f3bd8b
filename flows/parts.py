"""Many small things through one door: in parts, each a task run of its own, a few at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

from prefect import Task
from prefect.futures import wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

Item = TypeVar("Item")

THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=len(os.sched_getaffinity(0)))
"""Task runs of one flow run on threads: they share the stores' connections and one compute cluster."""

MOST_PARTS = 64
"""Task runs a stage: enough to see and to retry one by one, few enough that their own cost does not count."""


def in_parts(door: Task[Any, tuple[Item, ...]], refs: Sequence[Any], **shared: Any) -> list[Item]:
    """`door(refs=…, part=…, **shared)` over all `refs`; the results in order.

    All parts end before the failure of one is raised.
    """
    size = -(-len(refs) // MOST_PARTS) or 1
    futures = [
        door.submit(refs=tuple(refs[start : start + size]), part=start // size, **shared)
        for start in range(0, len(refs), size)
    ]
    wait(futures)
    return [item for future in futures for item in future.result()]
