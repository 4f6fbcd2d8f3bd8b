"""`nocturne status`: what runs, where every study is, and what is stuck."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.shared import ready, stores_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.settings import Settings
    from tasks.stores.house import Stores


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Tell what runs and what is there: received, waiting, in quarantine and why, delivered, learnt, serving."""
    settings = ready()
    stores = stores_of(settings)
    if as_json:
        import json

        typer.echo(json.dumps(_document(settings, stores), indent=1))
        return
    from flows.console import pairs, table
    from flows.views import HEALTH_COLUMNS, QUARANTINE_COLUMNS, STUCK_COLUMNS, overview, quarantine, stuck

    if running := _processes(settings):
        table("Processes", HEALTH_COLUMNS, running)
    pairs("Nocturne", overview(stores))
    if waiting := stuck(stores):
        table("Stuck", STUCK_COLUMNS, waiting)
    if kept := quarantine(stores):
        table("In quarantine", QUARANTINE_COLUMNS, kept)


def _processes(settings: Settings) -> list[tuple[str, str, str]]:
    """None where `nocturne up` was never used here."""
    if not (settings.home / "run").is_dir():
        return []
    from flows.health import health

    return [(one.name, one.state, one.told) for one in health(settings)]


def _document(settings: Settings, stores: Stores) -> dict[str, Any]:
    from flows.views import HEALTH_COLUMNS, QUARANTINE_COLUMNS, STUCK_COLUMNS, quarantine, stuck
    from tasks.stores.account import account

    def rows(columns: Sequence[str], found: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
        return [dict(zip([column or "told" for column in columns], row, strict=True)) for row in found]

    return {
        "account": account(stores.catalog).to_json(),
        "processes": rows(HEALTH_COLUMNS, _processes(settings)),
        "stuck": rows(STUCK_COLUMNS, stuck(stores)),
        "quarantine": rows(QUARANTINE_COLUMNS, quarantine(stores)),
    }
