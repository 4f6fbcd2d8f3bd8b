"""Where flow runs wait for a worker: arrivals in a pool of their own, so that no training is ahead of them.

Training runs are processes of a worker here, or containers that Prefect's Docker or Kubernetes worker makes; what those
are made of lies beside this file as Prefect's base job templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final, Literal

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
from flows.night import GPU, knows_the_limit

PoolType = Literal["process", "docker", "kubernetes"]
_TOLD: Final[Mapping[PoolType, str]] = {
    "process": "Training and what is started by hand: a process for each run.",
    "docker": "Training and what is started by hand: a container for each run.",
    "kubernetes": "Training and what is started by hand: a Job for each run.",
}


def training_pool(kind: PoolType) -> str:
    """The name of the pool of this type: one type gives way to another without losing its runs."""
    return WORK_POOL if kind == "process" else f"{WORK_POOL}-{kind}"


def job_template(kind: PoolType) -> dict[str, Any]:
    """Prefect's base job template: variables, and the job that they go into."""
    if kind == "process":
        return ProcessWorker.get_default_base_job_template()
    told: dict[str, Any] = json.loads(files("deployments").joinpath(kind, "job.json").read_text(encoding="utf-8"))
    return told


def make_pools(client: SyncPrefectClient, kind: PoolType = "process") -> None:
    """The work pools, and the limit that lets one training at a time use the device."""
    _make(client, training_pool(kind), kind, _TOLD[kind], job_template(kind))
    told = "Arrived studies: run by a process that keeps the models in memory."
    _make(client, ARRIVALS_POOL, WarmWorker.type, told, WarmWorker.get_default_base_job_template())
    if not knows_the_limit(client):
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))


def _make(client: SyncPrefectClient, name: str, kind: str, description: str, template: dict[str, Any]) -> None:
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(name=name, type=kind, description=description, base_job_template=template)
        )
    else:
        kept = with_defaults(template, found.base_job_template)
        client.update_work_pool(name, WorkPoolUpdate(description=description, base_job_template=kept))


def with_defaults(template: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The template with what somebody has set as defaults in the UI: an image, a volume, a number of GPUs."""
    there = found.get("variables", {}).get("properties", {})
    variables = template["variables"]
    merged = {
        name: {**told, "default": there[name]["default"]} if "default" in there.get(name, {}) else told
        for name, told in variables["properties"].items()
    }
    return {**template, "variables": {**variables, "properties": merged}}
