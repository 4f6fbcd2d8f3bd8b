"""What runs and what does not: one line for each process of `nocturne up`."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from models.addresses import without_user
from models.errors import ServiceUnavailableError
from models.settings import Settings
from tasks.stores.heartbeats import Sign, signs

_STALE_SECONDS = 15.0
_PATIENCE = 1.0

State = Literal["well", "trouble", "away", "not started"]


@dataclass(frozen=True, slots=True)
class Health:
    """One process and how it is."""

    name: str
    state: State
    told: str = ""


def mlflow_page(settings: Settings) -> str:
    """Where MLflow's pages are."""
    address = settings.tracking()
    return (
        without_user(address)
        if address.startswith("http")
        else f"http://{settings.services.host}:{settings.services.mlflow_port}"
    )


def processes(settings: Settings) -> tuple[str, ...]:
    """Our own processes that this installation needs."""
    watch = ("watch",) if settings.watched or settings.orthanc else ()
    return ("listener", *watch, "relay", "worker", "arrivals")


def health(settings: Settings) -> list[Health]:
    """Every process; takes a second at most."""
    told = {sign.name: sign for sign in signs(settings.home)}
    with ThreadPoolExecutor(2) as pool:
        prefect = pool.submit(_served, "prefect", without_user(settings.prefect()))
        mlflow = pool.submit(_served, "mlflow", mlflow_page(settings))
        return [prefect.result(), mlflow.result(), *(_process(name, told) for name in processes(settings))]


def await_server(settings: Settings, seconds: float) -> None:
    """Until the Prefect server answers. Raises ServiceUnavailableError."""
    end = time.monotonic() + seconds
    api = without_user(settings.prefect())
    while _served("prefect", api).state != "well":
        if time.monotonic() > end:
            raise ServiceUnavailableError(
                f"the Prefect server has not answered for {seconds:.0f} s",
                where=api,
                hint="start it with `nocturne up`, or set prefect_url",
            )
        time.sleep(0.5)


def _served(name: str, url: str) -> Health:
    """Its open path is asked: no password is sent, and `url` holds none."""
    try:
        # No proxy: these are this installation's own servers.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url.rstrip('/')}/health", timeout=_PATIENCE) as answer:
            return Health(name, "well", url.removesuffix("/api")) if answer.status == 200 else _away(name, url)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return _away(name, url)


def _away(name: str, url: str) -> Health:
    return Health(name, "away", f"no answer at {url.removesuffix('/api')}")


def _process(name: str, told: Mapping[str, Sign]) -> Health:
    sign = told.get(name)
    if sign is None:
        return Health(name, "not started", "`nocturne up` starts it")
    if not sign.alive:
        return Health(name, "away", f"ended without notice {sign.age:.0f} s ago; see its log")
    if sign.age > _STALE_SECONDS:
        return Health(name, "away", f"no sign of life for {sign.age:.0f} s; see its log")
    figures = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in sign.figures.items() if n)
    return Health(name, "trouble" if sign.trouble else "well", sign.trouble or figures)
