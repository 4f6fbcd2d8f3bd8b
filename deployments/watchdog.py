"""Finds what was lost, and sets it going again: `nocturne run relay` looks every few seconds.

Runs whose process is gone; runs that crashed; studies whose servers were away; runs that wait for an answer longer
than they may; studies that never got a run. Everything here may be done twice: whatever is started again finds what was
done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled, Crashed, Failed, Running
from sqlalchemy import or_

from deployments.environment import HEARTBEAT_SECONDS, connected
from deployments.names import ARRIVALS, SILENT, TAG
from flows.approval import unanswered
from flows.environment import open_stores
from flows.states import AWAY
from models.errors import ServiceUnavailableError, SettingsError
from models.refs import StudyVersionRef
from models.settings import Settings
from tasks.receive.versions import close_version
from tasks.stores.house import Stores
from tasks.stores.tables import OutboxRow, StudyVersionRow, now

RESTARTED: Final = "started again by the watchdog"
_MOST: Final = 200
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what is waited for.

    A run that crashes is started again after each of `restart_seconds`, then left. One whose servers were away is
    started again after each of `away_seconds`, the last of them over and over until the run is older than `oldest`.
    """

    silent_seconds: float = 90.0
    revival_seconds: float = HEARTBEAT_SECONDS + 15.0
    pending_seconds: float = 300.0
    unstarted_seconds: float = 180.0
    restart_seconds: tuple[float, ...] = (5.0, 60.0, 300.0)
    away_seconds: tuple[float, ...] = (60.0, 300.0, 900.0)
    oldest: timedelta = timedelta(hours=24)


class Watchdog:
    """Remembers since when the server has answered: a server that was away makes every run look silent."""

    def __init__(self, settings: Settings, patience: Patience | None = None) -> None:
        self._settings, self._patience = settings, patience or Patience()
        self._answers_since: float | None = None
        self._looked_at = now()
        self._given_up: set[UUID] = set()
        self._unstarted_at = float("-inf")

    def look(self) -> int:
        """Look once; returns how many were set going. Raises ServiceUnavailableError, SettingsError."""
        try:
            with connected(self._settings), _served(), get_client(sync_client=True) as client:
                ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
                found = {d.id: d for d in client.read_deployments(deployment_filter=ours, limit=_MOST)}
                self._answered()
                if not found:
                    return 0
                ids = list(found)
                self._note_lost(client, ids)
                return self._restart(client, ids) + self._answer(client, ids) + self._start(client)
        except ServiceUnavailableError:
            self._answers_since = None
            raise

    def _answered(self) -> None:
        """The server answers. After a gap, in which this machine may have slept, the count begins anew."""
        before, self._looked_at = self._looked_at, now()
        longest = max(self._patience.silent_seconds - HEARTBEAT_SECONDS, HEARTBEAT_SECONDS)
        if (self._looked_at - before).total_seconds() > longest:
            self._answers_since = None
        self._answers_since = self._answers_since or time.monotonic()

    @cached_property
    def _stores(self) -> Stores:
        return open_stores(self._settings)

    def _note_lost(self, client: SyncPrefectClient, ids: Sequence[UUID]) -> None:
        """Crash what gives no sign of life, and end what nobody is left to cancel."""
        patience = self._patience
        watched = time.monotonic() - (self._answers_since or time.monotonic()) >= patience.silent_seconds
        for run in _runs(client, ids, StateType.RUNNING, StateType.PENDING, StateType.CANCELLING):
            age = _age(run)
            if run.state_type is StateType.PENDING:
                if age > patience.pending_seconds:
                    _set(client, run, Crashed(message=f"not begun within {patience.pending_seconds:.0f} s"))
            elif watched and age > patience.silent_seconds and not _alive(client, run, patience.silent_seconds):
                told = f"no sign of life for {patience.silent_seconds:.0f} s"
                over = run.state_type is StateType.CANCELLING
                _set(client, run, Cancelled(message=told) if over else Crashed(message=told))

    def _restart(self, client: SyncPrefectClient, ids: Sequence[UUID]) -> int:
        """Crashed and timed-out runs go on where they were, so many times; those whose servers were away, for a day."""
        recent = FlowRunFilterEndTime(after_=now() - self._patience.oldest)
        names = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Crashed", "TimedOut", AWAY]))
        crashed = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=list(ids)), state=names, end_time=recent)
        restarted = 0
        for run in client.read_flow_runs(flow_run_filter=crashed, limit=_MOST):
            if run.id in self._given_up or self._lives(client, run):
                continue
            seconds = self._restart_after(run, client.read_flow_run_states(run.id))
            if seconds is None:
                self._give_up(client, run)
                continue
            due = now() + timedelta(seconds=seconds)
            restarted += _set(client, run, AwaitingRetry(message=RESTARTED, scheduled_time=due))
        return restarted

    def _give_up(self, client: SyncPrefectClient, run: FlowRun) -> None:
        """It is left as it is; but of what failed people are told, and `nocturne status` tells of the study."""
        self._given_up.add(run.id)
        if run.state is None or run.state_name != AWAY:
            return
        told = run.state.message or AWAY
        close_version(self._stores, StudyVersionRef(key=_version(run)), "failed", told)
        _set(client, run, Failed(message=f"given up: {told}"))

    def _restart_after(self, run: FlowRun, states: Sequence[State[Any]]) -> float | None:
        """Seconds to wait before it is started again; None where that was done often enough."""
        patience = self._patience
        away = sum(state.name == AWAY for state in states)
        if run.state_name == AWAY:
            old = run.created is not None and now() - run.created > patience.oldest
            return None if old else patience.away_seconds[min(away, len(patience.away_seconds)) - 1]
        before = sum(state.message == RESTARTED for state in states) - away
        if before < len(patience.restart_seconds):
            return patience.restart_seconds[max(before, 0)]
        _log.warning("run %s has crashed %d times: it is left", run.id, before + 1)
        return None

    def _lives(self, client: SyncPrefectClient, run: FlowRun) -> bool:
        """Whether a run that the server holds to be lost is not, or may not be: then nothing is started again.

        A server that was away for minutes finds, at its return, no heartbeat of runs that have gone on meanwhile.
        """
        if run.state is None or run.state.message != SILENT:
            return False
        age = _age(run)
        if _alive(client, run, age):
            return _set(client, run, Running(message="it had gone on while the server was away"))
        return age < self._patience.revival_seconds

    def _answer(self, client: SyncPrefectClient, ids: Sequence[UUID]) -> int:
        """Where nobody has answered in time, the answer is no: the run goes on and the champion stays."""
        answered = 0
        for run in _runs(client, ids, StateType.PAUSED):
            hours = float(run.parameters.get("approval_hours", self._settings.nightly.approval_hours))
            if run.state and run.state.state_details.run_input_keyset and _age(run) > 3600 * hours:
                client.resume_flow_run(run.id, run_input=unanswered(hours))
                answered += 1
        return answered

    def _start(self, client: SyncPrefectClient) -> int:
        """Studies whose event was taken by the server, and that have no run all the same."""
        patience = self._patience.unstarted_seconds
        if time.monotonic() - self._unstarted_at < patience / 5:
            return 0
        self._unstarted_at = time.monotonic()
        waiting = self._without_run(patience)
        if not waiting:
            return 0
        try:
            arrivals = client.read_deployment_by_name(ARRIVALS)
        except ObjectNotFound:
            return 0
        for run in _runs(client, [arrivals.id], StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING):
            waiting.discard(_version(run))
        for key in waiting:
            # One run for each version, whoever asks and how often.
            client.create_flow_run_from_deployment(
                arrivals.id, parameters={"version": {"key": key}}, idempotency_key=f"study-{key}"
            )
        return len(waiting)

    def _without_run(self, seconds: float) -> set[str]:
        catalog = self._stores.catalog
        since = now() - timedelta(seconds=seconds)
        old = StudyVersionRow.completed_at < since
        rows = catalog.find(
            StudyVersionRow, StudyVersionRow.started_at.is_(None), StudyVersionRow.finished_at.is_(None), old
        )
        if not rows:
            return set()
        # A server that was away is told of a study long after it was whole; its run takes seconds to be there.
        on_its_way = or_(OutboxRow.done_at.is_(None), OutboxRow.done_at > since)
        told = catalog.find(OutboxRow, OutboxRow.kind == "event", on_its_way)
        return {row.version for row in rows} - {str(row.payload.get("version")) for row in told}


_watchdogs: dict[str, Watchdog] = {}


def watch(settings: Settings) -> int:
    """Look once; returns how many runs were set going. To be called every few seconds from one process."""
    return _watchdogs.setdefault(settings.prefect(), Watchdog(settings)).look()


def _runs(client: SyncPrefectClient, ids: Sequence[UUID], *types: StateType) -> Iterator[FlowRun]:
    """All runs of these deployments in one of these states."""
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=list(ids)),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
    )
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=wanted, limit=_MOST, offset=len(found)):
        found += page
        if len(page) < _MOST:
            break
    yield from found


def _version(run: FlowRun) -> str:
    """The study version that it is about."""
    return str((run.parameters.get("version") or {}).get("key"))


def _age(run: FlowRun) -> float:
    """Seconds since it came into its state."""
    return (now() - _moment(run)).total_seconds()


def _moment(run: FlowRun) -> datetime:
    return run.state.timestamp if run.state else now()


def _alive(client: SyncPrefectClient, run: FlowRun, seconds: float) -> bool:
    """Whether its process has given a sign of life within so many seconds."""
    wanted = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        occurred=EventOccurredFilter(since=now() - timedelta(seconds=seconds)),
    )
    return bool(client.read_events(wanted, limit=1).events)


def _set(client: SyncPrefectClient, run: FlowRun, state: State[Any]) -> bool:
    """Whether it was still there to be set."""
    try:
        client.set_flow_run_state(run.id, state, force=True)
    except ObjectNotFound:
        return False
    _log.warning("run %s: %s, %s", run.id, state.name, state.message)
    return True


@contextmanager
def _served() -> Iterator[None]:
    """Prefect's errors in our tree."""
    try:
        yield
    except httpx.TransportError as error:
        raise ServiceUnavailableError(f"the Prefect server does not answer: {type(error).__name__}") from error
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise SettingsError("the Prefect server refuses us", hint="look at prefect_auth") from error
        raise ServiceUnavailableError(f"the Prefect server answered {code}") from error
