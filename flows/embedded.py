"""Prefect's embedded server, which a command starts where the settings name none.

It takes seconds to come up, as the packages of a flow do: side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from models.errors import ServiceUnavailableError


@contextmanager
def embedded_server() -> Iterator[None]:
    """Start it while the block imports; when the block has ended it answers. Raises ServiceUnavailableError.

    A flow that is run later finds it there, as if it had started it itself.
    """
    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        yield
        return
    with ThreadPoolExecutor(1, "embedded-server") as pool:
        started = pool.submit(SubprocessASGIServer().start)
        yield
    try:
        started.result()
    except RuntimeError as error:
        raise ServiceUnavailableError(
            f"Prefect's embedded server does not start: {error}",
            where="prefect",
            hint="look at the disk and the memory, or name a server of your own: PREFECT_API_URL",
        ) from error
