"""MLflow's SQLite database: made whole or not at all, and opened by one process at a time.

MLflow makes its tables by dozens of migrations, each committed by parts. Killed among them, it could never open the
database again; so they are made in a folder beside it, and what is complete gets its name.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tasks.stores.locks import held
from tasks.stores.places import sync_folder, sync_tree


def sqlite_file(uri: str) -> Path | None:
    """The database's file; None for a server."""
    path = uri.removeprefix("sqlite:///")
    return Path(path) if path != uri and path and path != ":memory:" else None


@contextmanager
def database_lock(database: Path | None) -> Iterator[None]:
    """Held by one process at a time, beside the database file; nothing for a server."""
    if database is None:
        yield
        return
    with held(database.with_name(f"{database.name}.lock")):
        yield


def make_database(uri: str) -> None:
    """Make MLflow's tables where there are none yet, or where a killed process began to; nothing for a server."""
    database = sqlite_file(uri)
    if database is None or _in_use(database):
        return
    with database_lock(database):
        if not _in_use(database):
            workshop = database.with_name(f".{database.name}.new")
            shutil.rmtree(workshop, ignore_errors=True)
            workshop.mkdir()
            _fill(workshop / database.name)
            sync_tree(workshop)
            # What a killed process left of a change to the old file must not be taken for one to the new.
            for left in ("-journal", "-wal", "-shm"):
                database.with_name(f"{database.name}{left}").unlink(missing_ok=True)
            (workshop / database.name).replace(database)
            sync_folder(database.parent)
            shutil.rmtree(workshop, ignore_errors=True)


def _in_use(database: Path) -> bool:
    """Whether anything was ever kept in it: MLflow's first row, the experiment "Default", follows the last table."""
    if not database.exists():
        return False
    try:
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute("SELECT count(*) FROM experiments").fetchone() != (0,)
    except sqlite3.OperationalError as error:
        return "no such table" not in str(error)  # locked, or not to be read: then it is somebody's
    except sqlite3.DatabaseError:
        return True  # no database at all: MLflow will say so


def _fill(database: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{database}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.get_experiment_by_name("Default")
    client.search_registered_models(max_results=1)
