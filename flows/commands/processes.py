"""The processes of `nocturne up`, one by one."""

from __future__ import annotations

import typer

from flows.commands.shared import ready, served

running = typer.Typer(help="One of the processes of `nocturne up`, for a service manager.", no_args_is_help=True)


@running.command("prefect")
def run_prefect() -> None:
    """Start Prefect's server with this installation's settings."""
    settings = ready()
    from deployments.environment import server_environment
    from flows.servers import run_prefect as become

    become(settings, server_environment(settings))


@running.command("mlflow")
def run_mlflow() -> None:
    """Start MLflow's server on this installation's registry."""
    settings = ready()
    from flows.servers import run_mlflow as become

    become(settings)


@running.command("listener")
def run_listener() -> None:
    """Take in what is sent by C-STORE."""
    settings = ready()
    from flows.services import run_listener as work

    work(settings)


@running.command("watch")
def run_watch() -> None:
    """Take in what appears in watched folders and in Orthanc."""
    settings = ready()
    from flows.services import run_watch as work

    work(settings)


@running.command("relay")
def run_relay() -> None:
    """Complete studies, start their runs, send results that wait, and look after lost runs."""
    settings = served()
    from deployments.watchdog import watch
    from flows.services import run_relay as work

    work(settings, lambda: watch(settings))


@running.command("worker")
def run_worker() -> None:
    """Run what the Prefect server schedules, but for arrivals."""
    settings = served()
    from deployments.warm_worker import run_worker as work
    from flows.services import with_heartbeat

    with_heartbeat(settings, "worker", lambda: work(settings))


@running.command("arrivals")
def run_arrivals() -> None:
    """Run what arrived, with models that stay in memory."""
    settings = served()
    from deployments.warm_worker import run_arrivals as work
    from flows.services import with_heartbeat

    with_heartbeat(settings, "arrivals", lambda: work(settings, at_once=settings.arrivals.at_once))
