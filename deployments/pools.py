"""Where flow runs wait for a worker: arrivals in a pool of their own, so that no training is ahead of them."""

from __future__ import annotations

from typing import Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from deployments.names import ARRIVALS_POOL, WORK_POOL
from deployments.warm_worker import WarmWorker
from flows.night import GPU

_POOLS: Final = (
    (WORK_POOL, ProcessWorker, "Training and what is started by hand: a process for each run."),
    (ARRIVALS_POOL, WarmWorker, "Arrived studies: run by a process that keeps the models in memory."),
)


def make_pools(client: SyncPrefectClient) -> None:
    """The work pools, and the limit that lets one training at a time use the device."""
    for name, worker, description in _POOLS:
        template = worker.get_default_base_job_template()
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(
                WorkPoolCreate(name=name, type=worker.type, description=description, base_job_template=template)
            )
        else:
            client.update_work_pool(name, WorkPoolUpdate(description=description, base_job_template=template))
    try:
        client.read_global_concurrency_limit_by_name(GPU)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))
