"""What holds for a night as a whole: patience, one training at a time, one dataset however often it is taken up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import RUN_ID, TASK_SOURCE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

P = ParamSpec("P")
R = TypeVar("R")

GPU: Final = "gpu"
"""The server's limit on how many trainings there are at once."""

LEASE_SECONDS: Final = 60
"""A killed training frees the device after so long."""


PATIENCE: Final = 9
"""Requests to the server that fail are made so often again, with pauses that double: a quarter of an hour."""


@contextmanager
def patient() -> Iterator[None]:
    """Wait for a server that is started anew: hours of work are worth it. Whoever polls for work must look sooner."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: max(PATIENCE, PREFECT_CLIENT_MAX_RETRIES.value())}):
        yield


@contextmanager
def one_training_at_a_time() -> Iterator[None]:
    """Wait for the device, and hold it. A server without the limit (the embedded one) lets everybody pass."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is not None and run.empirical_policy.pause_keys:
        yield  # resumed after somebody's answer: it has trained, and need not wait for another's training
        return
    deployed = run is not None and run.deployment_id is not None
    if not deployed and not _device_is_limited():
        yield
        return
    # A server that is away for a minute must not end hours of training: the lease may lapse, the work goes on.
    with concurrency(GPU, lease_duration=LEASE_SECONDS, strict=deployed, raise_on_lease_renewal_failure=False):
        yield


def _device_is_limited() -> bool:
    with get_client(sync_client=True) as client:
        return knows_the_limit(client)


def knows_the_limit(client: SyncPrefectClient) -> bool:
    """Whether this server limits trainings."""
    try:
        client.read_global_concurrency_limit_by_name(GPU)
    except ObjectNotFound:
        return False
    return True


def for_this_night(door: Task[P, R]) -> Task[P, R]:
    """The door, whose result stands for the whole flow run: taken up again, the night goes on with what it had."""
    options: dict[str, Any] = {"cache_policy": RUN_ID + TASK_SOURCE}
    return door.with_options(**options)
