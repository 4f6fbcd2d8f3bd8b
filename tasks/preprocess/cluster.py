"""Where the work on many cases runs: a Dask scheduler that is there, or a local one for the time of one stage.

Whoever reaches a scheduler can run code as its workers' user. So the local one is behind TLS, and one on another
machine has to be, unless the settings say that its network is trusted.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import dask
from distributed import Client, Future, LocalCluster, Security
from distributed.system import MEMORY_LIMIT

from models.addresses import is_loopback
from models.errors import ServiceUnavailableError, SettingsError
from tasks.imaging.heap import give_back
from tasks.preprocess.workers import OneBlasThread, registered
from tasks.stores.house import DaskTls

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 15
LONELY_SECONDS = 60.0
"""Without any worker for so long, work is given up: nobody may be there to start another."""

PROCESS_BYTES = 4 << 30
"""Of memory that a local process has at least, if the machine has it: a CT of 500 slices takes most of that."""

_ENVIRON = "distributed.nanny.pre-spawn-environ"
_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
"""glibc's for a local worker: what a case has freed stays for the next. As Dask sets it, the kernel takes each array
back and clears it for the next one, 40 % of a case's CPU time."""


@contextmanager
def compute_client(
    address: str, workers: int, tls: DaskTls | None = None, unencrypted: bool = False
) -> Iterator[Client]:
    """A client of the scheduler at `address`, or of a cluster of this machine's own where that is empty.

    The local cluster is `workers` processes (0: one per core) that share the memory and are restarted if they die;
    where that is less than `PROCESS_BYTES` each, fewer of several threads. They listen on the loopback interface alone,
    behind TLS with a key of their own, and have no dashboard.
    Raises ServiceUnavailableError where nobody answers or no worker is there, SettingsError where `tls` cannot be used
    or is missing (`unencrypted` allows that for another machine).
    """
    with dask.config.set({"distributed.logging.distributed": "error"}), _quiet():
        if address:
            with _remote(address, _security(address, tls, unencrypted)) as client:
                yield client
            return
        wanted = workers or len(_cores())
        processes = max(1, min(wanted, MEMORY_LIMIT // PROCESS_BYTES))
        with (
            _environment_kept(),
            # Without its pages nobody sees what the profiler keeps of each of a hundred looks a second.
            dask.config.set(
                {_ENVIRON: {**dask.config.get(_ENVIRON), **_MEMORY}, "distributed.worker.profile.enabled": False}
            ),
            LocalCluster(
                n_workers=processes,
                # Threads of one process wait for each other for most of a case.
                threads_per_worker=math.ceil(wanted / processes),
                memory_limit=MEMORY_LIMIT // processes,
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


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Dask sets its workers' variables (one thread, memory) in this process too, whose own children would have them."""
    before = {name: os.environ.get(name) for name in (*dask.config.get(_ENVIRON), *_MEMORY, "PYTHONHASHSEED")}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def given_up_when_alone(client: Client, futures: Sequence[Future]) -> Iterator[None]:
    """Cancels the futures once no worker has been at work for `LONELY_SECONDS`: a scheduler would wait for ever.

    A worker whose memory is almost full takes nothing up; one that does nothing either will not recover.
    """
    over = threading.Event()

    def watch() -> None:
        last_seen = time.monotonic()
        while not over.wait(min(2.0, LONELY_SECONDS / 4)):
            if _has_workers(client):
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > LONELY_SECONDS:
                with suppress(OSError):  # the scheduler has gone too, and the futures with it
                    client.cancel(list(futures))
                return

    watcher = threading.Thread(target=watch, name="dask-workers", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _has_workers(client: Client) -> bool:
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        return any(w["status"] == "running" or _counts(w).get("executing") for w in workers)
    except (OSError, TimeoutError):
        return False


@contextmanager
def all_memory(client: Client) -> Iterator[Client]:
    """Of one worker that has this machine's memory alone, where several of its processes share it; else `client`."""
    if client.cluster is None or len(client.cluster.workers) < 2:
        yield client
        return
    client.run(give_back, on_error="ignore")  # one that is just being restarted holds nothing
    with compute_client("", 1) as alone:
        yield alone


def roomiest_workers(client: Client) -> tuple[str, ...]:
    """Addresses of those with the most memory; none where all have the same."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    limits = {address: worker.get("memory_limit") or math.inf for address, worker in workers.items()}
    most = max(limits.values(), default=0)
    return tuple(a for a, limit in limits.items() if limit == most) if len(set(limits.values())) > 1 else ()


def _counts(worker: Mapping[str, Any]) -> Mapping[str, int]:
    """Of its tasks by their state; none before its first sign of life."""
    counts: Mapping[str, int] = worker.get("metrics", {}).get("task_counts", {})
    return counts


@contextmanager
def _remote(address: str, security: Security | None) -> Iterator[Client]:
    with _connected(address, security) as client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            raise ServiceUnavailableError(
                "the Dask scheduler has no workers",
                where=address,
                hint="start some with `dask worker`, or leave `dask_address` empty to compute on this machine",
            ) from None
        with registered(client, OneBlasThread()):
            yield client


def _connected(address: str, security: Security | None) -> Client:
    try:
        return Client(address, timeout=CONNECT_SECONDS, security=security, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ServiceUnavailableError(
            "the Dask scheduler does not answer" + (", or trusts other certificates" if security else ""),
            where=address,
            hint="start it, or leave `dask_address` empty to compute on this machine",
        ) from error


def _security(address: str, tls: DaskTls | None, unencrypted: bool) -> Security | None:
    """What to connect with. Raises SettingsError."""
    scheme, _, rest = address.rpartition("://")
    if scheme == "tls":
        return _tls(address, tls)
    if tls:
        raise SettingsError("dask_tls_* are set, but the scheduler's address is not tls://…", where=address)
    if scheme not in {"", "tcp"} or unencrypted or is_loopback(urlsplit(f"//{rest}").hostname or ""):
        return None
    raise SettingsError(
        "without TLS, whoever reaches this scheduler's network can run code on its workers",
        where=address,
        hint="name it tls://… with dask_tls_ca, dask_tls_cert and dask_tls_key; or set dask_unencrypted = true",
    )


def _tls(address: str, tls: DaskTls | None) -> Security:
    if tls is None:  # it may be in Dask's own configuration
        security = Security(require_encryption=True)
        if not security.get_tls_config_for_role("client").get("ca_file"):
            raise SettingsError(
                "the scheduler wants TLS, and no certificates are named",
                where=address,
                hint="set dask_tls_ca, dask_tls_cert and dask_tls_key",
            )
        return security
    files = {"tls_ca_file": tls.ca, "tls_client_cert": tls.cert, "tls_client_key": tls.key}
    for name, file in files.items():
        if not os.access(file, os.R_OK):
            raise SettingsError(f"the file of {name} cannot be read", where=address, hint="see dask_tls_* in settings")
    security = Security(require_encryption=True, **{name: str(file) for name, file in files.items()})
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as error:
        told = f"its certificates cannot be used ({type(error).__name__})"
        raise SettingsError(told, where=address, hint="give PEM files, the key without a password") from None
    return security


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
