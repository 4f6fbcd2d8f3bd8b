"""A night on the services of a grown installation: three databases on PostgreSQL, S3, a Dask cluster, real servers.

PostgreSQL holds the catalog with its vault, Prefect's runs and MLflow's registry; volumes, datasets, packages and
evaluations lie on S3; cases are prepared on a Dask cluster behind TLS. What another machine then finds is all of it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import httpx
import psycopg
import pytest

from tasks.cohort.write import write_cohort
from tests.components import free_port, until
from tests.dask_cluster import DaskCluster, certificates, running_dask
from tests.faults.night import RECIPE
from tests.objects import KEY_ID, SECRET, ObjectStore, object_store  # noqa: F401
from tests.tasks.stores.conftest import Postgres, postgres  # noqa: F401

PATIENCE = 300.0
PARTS = ("volumes", "datasets", "packages", "evaluations")
ROOT = Path(__file__).parents[2]


@dataclass
class Grown:
    """An installation whose every part has moved out, as several machines see it."""

    folder: Path
    bucket: str
    objects: ObjectStore
    dask: DaskCluster
    databases: dict[str, str]
    prefect_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)

    @property
    def recipe(self) -> Path:
        return self.folder / "small.toml"

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    def environment(self, machine: str) -> dict[str, str]:
        """Of every process on one machine: it keeps a home, and nothing that others need in it."""
        assert self.dask.tls
        return {
            **os.environ,
            **self.objects.environment,
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "NOCTURNE_HOME": str(self.folder / machine),
            "NOCTURNE_SECRET": "5a" * 32,
            "NOCTURNE_VAULT_KEY": "a5" * 32,
            "NOCTURNE_CATALOG_URL": self.databases["catalog"],
            "NOCTURNE_TRACKING_URL": self.mlflow,
            "NOCTURNE_PREPARED_URL": str(self.folder / "shared"),
            **{f"NOCTURNE_{part.upper()}_URL": f"s3://{self.bucket}/{part}" for part in PARTS},
            "NOCTURNE_DASK_ADDRESS": self.dask.address,
            "NOCTURNE_DASK_TLS_CA": str(self.dask.tls.ca),
            "NOCTURNE_DASK_TLS_CERT": str(self.dask.tls.cert),
            "NOCTURNE_DASK_TLS_KEY": str(self.dask.tls.key),
            "NOCTURNE_SERVICES__PREFECT_PORT": str(self.prefect_port),
            "NOCTURNE_SERVICES__MLFLOW_PORT": str(self.mlflow_port),
            "PREFECT_API_URL": self.prefect,
        }

    def command(self, machine: str, *words: str) -> str:
        """Run a `nocturne` command to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "flows", *words],
            env=self.environment(machine),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def serve(self, name: str, database: str, **more: str) -> subprocess.Popen[bytes]:
        """`nocturne run NAME` on a machine of its own, over a database."""
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flows", "run", name],
                env={**self.environment("servers"), **more, "NOCTURNE_TRACKING_URL": database},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def query(self, database: str, text: str) -> list[tuple[object, ...]]:
        """Rows of one of the databases."""
        url = self.databases[database].replace("+asyncpg", "").replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            return connection.execute(text).fetchall()  # type: ignore[arg-type]

    def published(self, part: str) -> int:
        """Markers of a part on S3."""
        system = fsspec.filesystem("s3", use_listings_cache=False)
        root = f"{self.bucket}/{part}"
        return sum(path.endswith(".json") and path.count("/") == root.count("/") + 2 for path in system.find(root))


@pytest.fixture(scope="module")
def grown(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: Postgres,  # noqa: F811
    object_store: ObjectStore,  # noqa: F811
) -> Iterator[Grown]:
    folder = tmp_path_factory.mktemp("grown")
    databases = {
        name: postgres.new_database().replace("postgresql://", f"postgresql{driver}://")
        for name, driver in (("catalog", ""), ("prefect", "+asyncpg"), ("mlflow", "+psycopg"))
    }
    with ExitStack() as stack:
        dask = stack.enter_context(running_dask(folder / "dask", tls=certificates(folder / "pem"), workers=2))
        one = Grown(folder, object_store.new_bucket(), object_store, dask, databases)
        one.recipe.write_text(RECIPE)
        servers = {
            f"{one.prefect}/health": one.serve(
                "prefect", one.databases["mlflow"], PREFECT_SERVER_DATABASE_CONNECTION_URL=one.databases["prefect"]
            ),
            f"{one.mlflow}/health": one.serve("mlflow", one.databases["mlflow"]),
        }
        for server in servers.values():
            stack.callback(_end, server)
        for url, server in servers.items():
            until(lambda u=url, s=server: _answers(u, s), f"{url} answers", PATIENCE)  # type: ignore[misc]
        yield one


def test_a_night_on_services_and_what_another_machine_finds(grown: Grown) -> None:
    cohort = write_cohort(grown.folder / "demo", patients=8).incoming
    told = grown.command("first", "retrain", str(grown.recipe), "--from", str(cohort))
    assert "promoted" in told

    # Each database holds what is its own.
    assert grown.query("catalog", "SELECT count(*) FROM volumes")[0][0]
    assert grown.query("catalog", "SELECT count(*) FROM vault")[0][0]
    states = grown.query("prefect", "SELECT state_type::text FROM flow_run")
    assert states
    assert {state for (state,) in states} == {"COMPLETED"}
    assert grown.query("mlflow", "SELECT name, version FROM model_versions") == [("small", 1)]

    # So does S3; the home holds no store.
    assert all(grown.published(part) for part in PARTS)
    home = grown.folder / "first"
    assert not [name for name in (*PARTS, "prepared") if (home / name).exists()]
    assert not list(home.rglob("*.db"))
    assert "nocturne-" in (grown.folder / "dask" / "workers.log").read_text()  # cases were prepared there

    # Another machine finds the model, judges it by what lies on S3, and has nothing left to learn.
    assert "small" in grown.command("second", "models", "list")
    lasting = ("volumes", "datasets", "packages")  # a night without news writes its report all the same
    before = {part: grown.published(part) for part in lasting}
    packages = grown.query("catalog", "SELECT package, created_at FROM packages")
    grown.command("second", "retrain", str(grown.recipe))
    assert {part: grown.published(part) for part in lasting} == before
    assert grown.query("catalog", "SELECT package, created_at FROM packages") == packages
    assert "FAIL" not in grown.command("second", "doctor")

    # And nobody wrote down how to reach any of it.
    secrets = [SECRET.encode(), KEY_ID.encode()]
    for file in grown.folder.rglob("*"):
        if file.is_file() and not file.is_relative_to(cohort.parent):
            content = file.read_bytes()
            assert not [secret for secret in secrets if secret in content], file


def _answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, f"the server of {url} ended"
    try:
        return httpx.get(url, timeout=10, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
