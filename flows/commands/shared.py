"""What the commands of `nocturne` have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.recipe import Recipe
    from models.settings import Settings
    from tasks.stores.house import Stores

RecipePath = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A recipe (TOML); see recipes/.")]
Paths = Annotated[
    list[Path], typer.Argument(exists=True, help="Folders, DICOM files, zip or tar archives, a DICOMDIR.")
]
Name = Annotated[str, typer.Argument(help="The model: its recipe's name.")]


def ready() -> Settings:
    """Settings, and an environment in which the heavy packages may be imported."""
    from flows.environment import prepare_environment
    from models.settings import Settings

    settings = Settings.load()
    prepare_environment(settings)
    return settings


def served(wait_seconds: float = 300.0) -> Settings:
    """As `ready`, with the Prefect server of the settings, once it answers."""
    settings = ready()
    from deployments.environment import client_environment
    from flows.health import await_server

    os.environ.update(client_environment(settings))
    await_server(settings, wait_seconds)
    return settings


def stores_of(settings: Settings) -> Stores:
    """The stores of these settings."""
    from flows.environment import open_stores

    return open_stores(settings)


def recipe_at(path: Path) -> Recipe:
    """The recipe in a file. Raises RecipeError."""
    from models.recipe import Recipe

    return Recipe.parse(path.read_bytes(), where=path.name)


def who() -> str:
    """Who asks, for the audit trail."""
    import getpass

    return getpass.getuser()
