"""Registered models."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.shared import Name, ready, stores_of, who

models = typer.Typer(help="Registered models: which version serves, and why.", no_args_is_help=True)


class Form(StrEnum):
    """What a model can be exported as."""

    torch = "torch"
    onnx = "onnx"
    monai = "monai"


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
    rows = history(stores.registry, stores.catalog, name)
    trail = decisions(rows)
    table("Decisions", ("when", "what", "version", "before", "who", "why"), trail)
    if checks := (rows[-1].figures or {}).get("checks", ()) if rows else ():
        told = [("passed" if c["passed"] else "failed", c["rule"], c["limit"], c["value"], c["told"]) for c in checks]
        table(f"Rules of the last decision, on version {rows[-1].version}", ("", "rule", "limit", "value", ""), told)


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


@models.command("export")
def models_export(
    name: Name,
    out: Annotated[Path, typer.Option(help="The folder to write; it must not be there yet.")],
    to: Annotated[Form, typer.Option(help="A torch.export program, ONNX, or a MONAI bundle.")] = Form.torch,
    version: Annotated[str, typer.Option(help="A version's number, `champion` or `challenger`.")] = "champion",
) -> None:
    """Write a version in another form, checked against the package's own output on a patch."""
    stores = stores_of(ready())
    from flows.console import pairs
    from tasks.register.export import export_package
    from tasks.register.run import resolve_version

    which = resolve_version(stores, name, version)
    with tempfile.TemporaryDirectory() as scratch:
        folder = stores.registry.fetch(name, which, Path(scratch))
        done = export_package(folder, to.value, out, version=which)
    found = f"{done.difference:.2g} at most, of {done.tolerance:g} allowed"
    pairs("Exported", [("model", f"{name} version {which}"), ("folder", out), ("differs by", found)])
