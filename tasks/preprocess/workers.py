"""Whether the workers of a Dask cluster belong to this house: same code, same folders, same object stores.

Cases are sent to them by reference (a URL and keys) and results are left in the shared folder: a worker with other code
would compute something else under the same key, and one with folders of its own would find no case and leave its
results where nobody looks.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from distributed import Reschedule, Worker, WorkerPlugin, get_worker

from models.errors import NocturneError, ServiceUnavailableError, SettingsError
from tasks.imaging.heap import give_back
from tasks.stores.places import Place, open_place

if TYPE_CHECKING:
    from distributed import Client

_ROOMS = Path(__file__).parents[1]
_TOKENS = ".shared"
_LEAVES_SECONDS = 1.0
"""After so long: it has to have joined first."""
_INSTALL = "install the same version of Nocturne for the scheduler and every worker, and start them again"


class OneBlasThread(WorkerPlugin):
    """Cases run side by side, so each gets one thread of BLAS: more would only get in each other's way."""

    def __init__(self) -> None:
        self.name = f"nocturne-{secrets.token_hex(8)}"

    def setup(self, worker: Worker) -> None:
        """Also on workers that join or restart later."""
        # Only libraries that are loaded can be told.
        import scipy.linalg  # noqa: F401
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)


class OfThisHouse(WorkerPlugin):
    """Refuses a worker that does not belong to it; also one that joins while the work goes on."""

    def __init__(self, folder: Path, token: str, volumes: str, volume: str) -> None:
        self.name = f"nocturne-{token}"
        self.code = code_digest()
        self.folder, self.token, self.volumes, self.volume = folder, token, volumes, volume
        self.unfit: NocturneError | None = None

    def setup(self, worker: Worker) -> None:
        """Raises SettingsError, or what the volumes' store says, naming the worker. One that joins is sent away."""
        try:
            self._check(f"Dask worker {worker.address}")
        except NocturneError as error:
            self.unfit = error
            joins = not worker.periodic_callbacks["heartbeat"].is_running()
            if joins:  # where nobody hears the error: Dask would log it and let the worker in
                worker.loop.call_later(_LEAVES_SECONDS, worker.close)
            raise

    def _check(self, where: str) -> None:
        if self.code != code_digest():
            raise SettingsError("runs another version of Nocturne than this process", where=where, hint=_INSTALL)
        self._see_folder(where)
        try:
            self._see_volumes(where)
        except NocturneError as error:
            raise type(error)(f"{error.what} ({error.where})", where=where, hint=error.hint) from None

    def _see_folder(self, where: str) -> None:
        if not (self.folder / _TOKENS / self.token).is_file():
            hint = "name a folder that all workers share by `prepared_url`, under the same path on every machine"
            raise SettingsError("does not see the folder of prepared arrays", where=where, hint=hint)
        if not os.access(self.folder, os.W_OK):
            hint = "let its user write there"
            raise SettingsError("may not write into the folder of prepared arrays", where=where, hint=hint)

    def _see_volumes(self, where: str) -> None:
        if not self.volume:
            return
        folder = Path(self.volumes.removeprefix("file://"))
        unshared = "://" not in str(self.volumes).removeprefix("file://") and not folder.is_dir()
        if unshared or not open_place(self.volumes).exists(self.volume):
            hint = "name a folder that all workers share, or an object store that all of them reach, by `volumes_url`"
            raise SettingsError("does not see the volumes", where=where, hint=hint)


def of_use_here() -> None:
    """Called by a task: has it done elsewhere if this worker does not belong. Does nothing outside a worker."""
    try:
        plugins = get_worker().plugins.values()
    except ValueError:
        return
    if any(isinstance(plugin, OfThisHouse) and plugin.unfit for plugin in plugins):
        raise Reschedule


def lighten() -> None:
    """Called by a task when it is done: a worker that holds half of its memory gives back what was freed.

    Dask has it take up nothing while it holds most of it. Does nothing outside a worker.
    """
    try:
        limit = get_worker().memory_manager.memory_limit
    except ValueError:
        return
    if limit and psutil.Process().memory_info().rss > limit / 2:
        give_back()


@contextmanager
def of_this_house(client: Client, folder: Path, volumes: Place, wanted: Iterable[str]) -> Iterator[None]:
    """While it lasts, work goes only to workers that see `folder` and `volumes`.

    `wanted` are keys of volumes: the first that is there must be seen by all. Raises SettingsError naming the worker.
    """
    token = secrets.token_hex(8)
    volume = next((key for key in wanted if volumes.exists(key)), "")
    tokens = folder / _TOKENS
    tokens.mkdir(parents=True, exist_ok=True)
    (tokens / token).touch()
    try:
        _check_scheduler(client)
        with registered(client, OfThisHouse(folder.absolute(), token, volumes.url, volume)):
            yield
    finally:
        (tokens / token).unlink(missing_ok=True)


@contextmanager
def registered(client: Client, plugin: OneBlasThread | OfThisHouse) -> Iterator[None]:
    """While it lasts, all workers have the plugin; those that join meanwhile too.

    Raises what the plugin raises; SettingsError where a worker has other code, or none.
    """
    try:
        with _told():
            client.register_plugin(plugin)
        yield
    finally:
        with suppress(OSError, ValueError, KeyError):  # the scheduler is gone, or a worker never took it
            client.unregister_worker_plugin(plugin.name)


def _check_scheduler(client: Client) -> None:
    """It reads what is sent to the workers."""
    with _told():
        if client.run_on_scheduler(code_digest) != code_digest():
            raise SettingsError(
                "runs another version of Nocturne than this process", where="Dask scheduler", hint=_INSTALL
            )


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except NocturneError:
        raise
    except OSError as error:
        raise ServiceUnavailableError("the Dask cluster went away", where="Dask cluster") from error
    except Exception as error:  # what a worker cannot load comes as bare text
        told = f"its scheduler or a worker has no Nocturne, or another version ({error})"
        raise SettingsError(told, where="Dask cluster", hint=_INSTALL) from error


@cache
def code_digest() -> str:
    """Of the code that computes what is kept under a content key, as this process found it first."""
    try:
        digest = hashlib.sha256(version("nocturne").encode())
    except PackageNotFoundError:  # run from its sources
        digest = hashlib.sha256()
    for root in (_ROOMS, _ROOMS.with_name("models")):
        for file in sorted(root.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
