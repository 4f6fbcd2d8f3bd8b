"""The two workers of an installation: one that keeps models in memory for arrivals, one for everything else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

import anyio.abc
import httpx
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorkerResult
from prefect.workers.process import ProcessWorker

from deployments.environment import client_environment, connected
from deployments.names import ARRIVALS_POOL, WORK_POOL
from deployments.warm_engine import DONE, READY
from deployments.workers import SteadyWorker, host, serve
from models.errors import WorkerLostError
from models.settings import Settings

WARM_MODULES = ("flows.arrival", "mlflow", "monai.networks.nets", "pandas", "pandera.pandas")
_LOOK_SECONDS = 2.0


def run_arrivals(settings: Settings, *, at_once: int = 1, grace_seconds: float = 30.0) -> None:
    """Run arrived studies until SIGTERM or SIGINT, `at_once` at a time, in processes that stay warm."""
    os.environ.update(client_environment(settings))
    with connected(settings):
        serve(WarmWorker(ARRIVALS_POOL, name=f"arrivals-{host()}", limit=at_once, prefetch_seconds=0), grace_seconds)


def run_worker(settings: Settings, *, at_once: int | None = None, grace_seconds: float = 5.0) -> None:
    """Run everything else until SIGTERM or SIGINT, each run in a process of its own."""
    os.environ.update(client_environment(settings))
    with connected(settings):
        serve(TrainingWorker(WORK_POOL, name=f"worker-{host()}", limit=at_once, prefetch_seconds=0), grace_seconds)


class TrainingWorker(SteadyWorker, ProcessWorker):  # type: ignore[misc]
    """Prefect's process worker, made steady."""

    type = "process"

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "nocturne-process"  # Prefect's own stays the one that is found under "process"

    async def carry_out(
        self, flow_run: FlowRun, configuration: Any, task_status: anyio.abc.TaskStatus[int]
    ) -> BaseWorkerResult:
        """In a new process."""
        return await ProcessWorker.run(self, flow_run, configuration, task_status)


class WarmResult(BaseWorkerResult):
    """How a run in a warm process ended."""


class WarmWorker(SteadyWorker):
    """Runs flow runs in processes that outlive them."""

    type = "nocturne-warm"
    job_configuration = BaseJobConfiguration
    job_configuration_variables = BaseVariables
    _description = "Runs arrived studies in a process that keeps the models in memory. Start it with `nocturne up`."
    modules: ClassVar[Sequence[str]] = WARM_MODULES

    def __init__(self, *arguments: Any, limit: int = 1, **options: Any) -> None:
        super().__init__(*arguments, limit=limit, **options)
        self._idle = [Engine(self.modules) for _ in range(limit)]

    async def setup(self) -> None:
        """Warm the processes, then begin to look for work."""
        for engine in self._idle:
            await engine.start()
        await super().setup()

    async def teardown(self, *exc_info: Any) -> None:
        """End the processes once their runs are handed back."""
        try:
            await super().teardown(*exc_info)
        finally:
            for engine in self._idle:
                engine.kill()

    async def carry_out(
        self, flow_run: FlowRun, configuration: Any, task_status: anyio.abc.TaskStatus[int]
    ) -> BaseWorkerResult:
        """In a warm process; a run that is called off ends with its process, and another is warmed."""
        engine = self._idle.pop()
        try:
            pid = await engine.begin(flow_run)
            task_status.started(pid)
            while (code := await engine.ended(_LOOK_SECONDS)) is None:
                if await self._called_off(flow_run):
                    engine.kill()
                    await self._mark_flow_run_as_cancelled(flow_run, {"message": "cancelled while it ran"})
                    code = 0
                    break
        except BaseException:
            engine.kill()
            raise
        finally:
            self._idle.append(engine)
        await engine.start()
        return WarmResult(identifier=str(pid), status_code=code)

    async def _called_off(self, flow_run: FlowRun) -> bool:
        try:
            state = (await self.client.read_flow_run(flow_run.id)).state
        except ObjectNotFound:
            return True
        except httpx.HTTPError:
            return False  # the server is away: asked again
        return state is not None and (state.is_cancelling() or state.is_cancelled())


class Engine:
    """A warm process, seen from the worker."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = tuple(modules)
        self._process: asyncio.subprocess.Process | None = None
        self._answer: asyncio.Task[bytes] | None = None
        self._warm = False

    async def start(self) -> None:
        """Have a process; it warms itself meanwhile."""
        if self._process is not None and self._process.returncode is None:
            return
        command = (sys.executable, "-m", "deployments.warm_engine", *self._modules)
        pipe = asyncio.subprocess.PIPE
        # A session of its own: a signal to the worker's group must leave it the time to finish.
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True)
        self._warm = False
        self._listen()

    async def begin(self, flow_run: FlowRun) -> int:
        """Have the run started as soon as the process is warm; returns the process' id. Raises WorkerLostError."""
        await self.start()
        if self._process is None or self._process.stdin is None:
            raise WorkerLostError("the warm process could not be started", where=str(flow_run.id))
        if not self._warm and await self._said() != READY:
            raise WorkerLostError(
                f"the warm process ended with code {await self._process.wait()} before it was ready",
                where=str(flow_run.id),
                hint="its log says why",
            )
        self._warm = True
        self._listen()
        self._process.stdin.write(f"{flow_run.id}\n".encode())
        await self._process.stdin.drain()
        return self._process.pid

    async def ended(self, seconds: float) -> int | None:
        """The run's exit code, once it is over; None where it still runs after so many seconds."""
        if self._answer is None or self._process is None:
            return 1
        done, _ = await asyncio.wait({self._answer}, timeout=seconds)
        if not done:
            return None
        word, _, code = (await self._said()).partition(" ")
        return int(code) if word == DONE else await self._process.wait() or 1

    def kill(self) -> None:
        """End the process at once, with all that it has started."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process = self._answer = None

    def _listen(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._answer = asyncio.create_task(self._process.stdout.readline())

    async def _said(self) -> str:
        return (await self._answer).decode().strip() if self._answer is not None else ""
