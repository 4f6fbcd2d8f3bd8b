"""Where the work on many cases runs: a Dask scheduler that is there, or a local one for the time of one stage."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster, Security, Worker, WorkerPlugin

from models.errors import ServiceUnavailableError

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 15


class OneBlasThread(WorkerPlugin):
    """Cases run side by side, so each gets one thread of BLAS: more would only get in each other's way."""

    name = "one-blas-thread"

    def setup(self, worker: Worker) -> None:
        """Also on workers that join or restart later."""
        # Only libraries that are loaded can be told.
        import scipy.linalg  # noqa: F401
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)


@contextmanager
def compute_client(address: str, workers: int) -> Iterator[Client]:
    """A client of the scheduler at `address`, or of a cluster of this machine's own where that is empty.

    The local cluster is one process with `workers` threads (0: one per core) that is restarted if it dies; it listens
    on the loopback interface alone, behind TLS with a key of its own, and has no dashboard.
    Raises ServiceUnavailableError where nobody answers.
    """
    with dask.config.set({"distributed.logging.distributed": "error"}), _quiet():
        if address:
            with _remote(address) as client:
                client.register_plugin(OneBlasThread())
                yield client
            return
        with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=workers or len(_cores()),
                processes=True,
                host=LOOPBACK,
                # Without an address Dask would serve its pages on a fixed port; on this one it serves health alone.
                dashboard_address=f"{LOOPBACK}:0",
                worker_dashboard_address=f"{LOOPBACK}:0",
                scheduler_kwargs={"dashboard": False},
                # Whoever reaches a scheduler can run code as this user: other users of this machine must not.
                security=Security.temporary(),
                protocol="tls://",
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            client.register_plugin(OneBlasThread())
            yield client


def _remote(address: str) -> Client:
    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ServiceUnavailableError(
            "the Dask scheduler does not answer",
            where=address,
            hint="start it, or leave `dask_address` empty to compute on this machine",
        ) from error


def _cores() -> set[int]:
    """The cores that this process may use."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """A worker that is restarted is no news to the reader: what it means for the cases is told by the stage."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.nanny", "distributed.scheduler")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
