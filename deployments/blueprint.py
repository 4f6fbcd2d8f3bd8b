"""One deployment as it is meant to be, and how the server is brought to have it so."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, VersionInfo
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from deployments.automations import automate
from deployments.environment import connected
from deployments.names import FROM_SETTINGS, TAG
from deployments.pools import PoolType, make_pools
from models.errors import ServiceUnavailableError, SettingsError
from models.hashing import content_key
from models.settings import Settings


@dataclass(frozen=True)
class Blueprint:
    """One deployment as it is meant to be."""

    flow: Flow[..., Any]
    name: str
    pool: str
    description: str
    tags: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    cron: str = ""
    timezone: str = "UTC"
    limit: int | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """As Prefect writes it."""
        return f"{self.flow.name}/{self.name}"

    def build(self, found: DeploymentResponse | None) -> RunnerDeployment:
        """The definition; `found` is what is there, from which the pauses are taken over."""
        active = all(schedule.active for schedule in found.schedules) if found else True
        made = RunnerDeployment.from_flow(
            self.flow,
            self.name,
            entrypoint_type=EntrypointType.MODULE_PATH,
            work_pool_name=self.pool,
            description=self.description,
            tags=[TAG, *self.tags],
            parameters=self.parameters,
            paused=found.paused if found else None,
            concurrency_limit=self.limit
            and ConcurrencyLimitConfig(limit=self.limit, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            job_variables={"env": self.environment} if self.environment else {},
        )
        if self.cron:
            schedule = CronSchedule(cron=self.cron, timezone=self.timezone)
            made.schedules = [DeploymentScheduleCreate(schedule=schedule, active=active, slug="nightly")]
        made.version = f"{importlib.metadata.version('nocturne')}+{_digest(made)}"
        return made


def bring_up(settings: Settings, blueprints: Sequence[Blueprint], *, training: PoolType = "process") -> tuple[str, ...]:
    """Let the server have these deployments, with pools, limits and automations; returns their names."""
    with connected(settings), _served(), get_client(sync_client=True) as client:
        make_pools(client, training)
        ids = {blueprint.full_name: _apply(client, blueprint) for blueprint in blueprints}
        _retire(client, set(ids.values()))
        automate(client, settings, ids, {b.full_name for b in blueprints if b.parameters.get("approval")})
    return tuple(ids)


def _apply(client: SyncPrefectClient, blueprint: Blueprint) -> UUID:
    try:
        found = client.read_deployment_by_name(blueprint.full_name)
    except ObjectNotFound:
        found = None
    try:
        wanted = blueprint.build(found)
    except ValidationError as error:
        told = "; ".join(str(e["msg"]) for e in error.errors(include_input=False))
        raise SettingsError(
            told, where=blueprint.full_name, hint="look at nightly.cron, nightly.watch and nightly.timezone"
        ) from None
    if found is not None and found.version == wanted.version:
        return found.id  # telling it again would drop the runs that are due
    info = VersionInfo(type="prefect:simple", version=wanted.version or "")
    return _id(wanted.apply(version_info=info))


def _retire(client: SyncPrefectClient, kept: set[UUID]) -> None:
    """Pause the retrainings that the settings no longer name; their runs stay to be looked at."""
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG, FROM_SETTINGS]))
    for deployment in client.read_deployments(deployment_filter=ours, limit=200):
        if deployment.id not in kept and not deployment.paused:
            client.pause_deployment(deployment.id)


def _digest(made: RunnerDeployment) -> str:
    """Over all that is told to the server, but for what a person may change there."""
    document = made.model_dump(mode="json", exclude={"version", "paused", "schedules", "triggers", "storage"})
    schedules = [s.schedule.model_dump(mode="json", exclude_none=True) for s in made.schedules or () if s.schedule]
    return content_key("deployment", document, schedules, made._parameter_openapi_schema.model_dump(mode="json"))[:12]


def _id(value: Any) -> UUID:
    if not isinstance(value, UUID):
        raise TypeError(f"a deployment was to be made outside of an event loop, not {type(value).__name__}")
    return value


@contextmanager
def _served() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ServiceUnavailableError(
            f"the Prefect server does not answer: {type(error).__name__}", hint="start it with `nocturne up`"
        ) from error
