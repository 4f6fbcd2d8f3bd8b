"""Registered models."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.shared import Name, ready, stores_of, who

models = typer.Typer(help="Registered models: which version serves, and why.", no_args_is_help=True)


@models.command("list")
def models_list() -> None:
    """List all models with the version that serves."""
    stores = stores_of(ready())
    from flows.console import table
    from flows.views import models as overview

    table("Models", ("model", "versions", "champion", "challenger"), overview(stores))


@models.command("show")
def models_show(name: Name) -> None:
    """Show a model's versions and the decisions on them."""
    stores = stores_of(ready())
    from flows.console import table
    from flows.views import decisions, versions
    from tasks.register.promotion import history

    found = versions(stores.registry.versions(name))
    table(f"Versions of {name}", ("version", "alias", "package", "figure", "created"), found)
    trail = decisions(history(stores.registry, stores.catalog, name))
    table("Decisions", ("when", "what", "version", "before", "who", "why"), trail)


@models.command("promote")
def models_promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version's number.")],
    reason: Annotated[str, typer.Option(prompt="Why", help="Kept in the audit trail.")],
) -> None:
    """Let a version serve because you say so."""
    stores = stores_of(ready())
    from flows.console import table
    from flows.views import decisions
    from tasks.register.promotion import promote

    row = promote(stores.registry, stores.catalog, name, version, who=who(), reason=reason)
    table(f"Decision on {name}", ("when", "what", "version", "before", "who", "why"), decisions([row]))


@models.command("rollback")
def models_rollback(
    name: Name, reason: Annotated[str, typer.Option(prompt="Why", help="Kept in the audit trail.")]
) -> None:
    """Let the champion before this one serve again."""
    stores = stores_of(ready())
    from flows.console import table
    from flows.views import decisions
    from tasks.register.promotion import rollback

    row = rollback(stores.registry, stores.catalog, name, who=who(), reason=reason)
    table(f"Decision on {name}", ("when", "what", "version", "before", "who", "why"), decisions([row]))
