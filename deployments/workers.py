"""What our workers have in common: patience with a server that is away, and a stop that loses no run."""

from __future__ import annotations

import logging
import os
import signal
import socket
from abc import abstractmethod
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

import anyio
import anyio.abc
import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry
from prefect.workers.base import BaseJobConfiguration, BaseWorker, BaseWorkerResult

C = TypeVar("C", bound=BaseJobConfiguration)

_log = logging.getLogger(__name__)


class SteadyWorker(BaseWorker[Any, Any, Any]):
    """A worker that outlasts its server's absence, and hands back what it has not finished when it is stopped."""

    type = "nocturne-steady"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.draining = False
        self.running: dict[UUID, int | None] = {}
        """The flow runs in hand, with the process of each."""
        self._looking = anyio.Lock()

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take what is due, unless this worker is about to stop."""
        async with self._looking:
            if self.draining:
                return []
            try:
                return await super().get_and_submit_flow_runs()
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                _bear(error)
                return []

    def _release_limit_slot(self, flow_run_id: UUID) -> None:
        super()._release_limit_slot(flow_run_id)
        if self._limiter and self._runs_task_group is not None:
            self._runs_task_group.start_soon(self._look_now)

    async def _look_now(self) -> None:
        """What waited for a free slot need not wait for the next look."""
        with suppress(httpx.HTTPStatusError):  # a server that refuses us is told by the next look
            await self.get_and_submit_flow_runs()

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        """Without those in hand: a run that is resumed at once is due again before its process has ended."""
        found = await super()._get_scheduled_flow_runs()
        return [entry for entry in found if entry.flow_run.id not in self.running]

    async def _sync_and_initialize(self) -> None:
        try:
            await super()._sync_and_initialize()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            _bear(error)

    async def run(
        self, flow_run: FlowRun, configuration: Any, task_status: anyio.abc.TaskStatus[int] | None = None
    ) -> BaseWorkerResult:
        """Run it to its end. Where the worker is stopped before, the run goes back to be taken again."""
        self.running[flow_run.id] = None
        try:
            return await self.carry_out(flow_run, configuration, _Started(self, flow_run.id, task_status))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await _hand_back(flow_run.id)
            raise
        finally:
            self.running.pop(flow_run.id, None)

    @abstractmethod
    async def carry_out(
        self, flow_run: FlowRun, configuration: Any, task_status: anyio.abc.TaskStatus[int]
    ) -> BaseWorkerResult:
        """Run it to its end."""

    async def finished(self) -> None:
        """Until no run is in hand."""
        while self.running:  # noqa: ASYNC110 - nothing that could wake it
            await anyio.sleep(0.1)

    def kill_running(self) -> None:
        """End the processes of all runs in hand at once: what they had done is stored, and goes on from there."""
        for pid in self.running.values():
            if pid is not None:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    _log.debug("process %d had ended", pid)


class _Started:
    """Passes on the id of a run's process, and keeps it for `kill_running`."""

    def __init__(self, worker: SteadyWorker, flow_run: UUID, task_status: anyio.abc.TaskStatus[int] | None) -> None:
        self._worker, self._flow_run, self._task_status = worker, flow_run, task_status

    def started(self, value: int | None = None) -> None:
        """The process is there."""
        self._worker.running[self._flow_run] = value
        if self._task_status is not None and value is not None:
            self._task_status.started(value)


def serve(worker: SteadyWorker, grace_seconds: float) -> None:
    """Run the worker until SIGTERM or SIGINT; then let the runs in hand finish for so long, and hand back the rest."""
    anyio.run(_serve, worker, grace_seconds)


def host() -> str:
    """This machine's name, as it may be part of a worker's."""
    return socket.gethostname().replace("/", "-").replace("%", "-") or "host"


async def _serve(worker: SteadyWorker, grace_seconds: float) -> None:
    async with anyio.create_task_group() as group:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            group.start_soon(_start, worker)
            async for _ in signals:
                break
            worker.draining = True
            with anyio.move_on_after(grace_seconds):
                await worker.finished()
            # No await in between: a run whose process is gone must not be told as crashed before it is handed back.
            worker.kill_running()
            group.cancel_scope.cancel()


async def _start(worker: SteadyWorker) -> None:
    await worker.start(printer=_log.info)


async def _hand_back(flow_run: UUID) -> None:
    try:
        async with get_client() as client:
            if (await client.read_flow_run(flow_run)).state_type in (StateType.RUNNING, StateType.PENDING):
                state: State[Any] = AwaitingRetry(message="the worker was stopped: it goes on when a worker is there")
                await client.set_flow_run_state(flow_run, state, force=True)
    except (httpx.HTTPError, ObjectNotFound) as error:
        # The watchdog finds it by its silence.
        _log.warning("run %s could not be handed back: %s", flow_run, type(error).__name__)


def _bear(error: httpx.TransportError | httpx.HTTPStatusError) -> None:
    """An absent server is waited for; one that refuses us is not."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
        raise error
    _log.warning("the Prefect server is away: %s", type(error).__name__)
