"""One contract, two databases: every test that asks for `database_url` runs over SQLite and over PostgreSQL."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tasks.stores.catalog import Catalog
from tests.objects import object_store  # noqa: F401


@dataclass
class Postgres:
    """A real server in a temporary folder, reached by a Unix socket alone."""

    programs: Path
    folder: Path
    user: str

    def start(self) -> None:
        settings = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off -c autovacuum=off"
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-t", "300", "-o", settings, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "-t", "300", "stop")

    def initialise(self) -> None:
        self._run("initdb", "-D", "data", "-U", "nocturne", "-A", "trust", "--no-sync", "-E", "UTF8")

    def url(self, database: str) -> str:
        return f"postgresql://nocturne@/{database}?host={self.folder}"

    def new_database(self) -> str:
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        # Output goes to a file: a pipe would stay open in the server that pg_ctl leaves behind.
        with (self.folder / "out").open("ab") as out:
            subprocess.run(
                [self.programs / program, *arguments],
                cwd=self.folder,
                user=self.user if os.getuid() == 0 else None,
                stdout=out,
                stderr=out,
                check=True,
                timeout=600,
            )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if not found:
        pytest.skip("PostgreSQL's server programs are not installed")
    user = "postgres" if os.getuid() == 0 else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="noct-pg-"))  # pytest's own folders are closed to other users
    try:
        if os.getuid() == 0:
            try:
                shutil.chown(folder, user)
            except LookupError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it")
        server = Postgres(found[-1].parent, folder, user)
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    """A catalog on an empty database."""
    catalog = Catalog(database_url)
    yield catalog
    catalog.close()
