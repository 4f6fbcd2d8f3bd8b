"""Servers that are away for a while: what is under way waits, goes on, and does nothing twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import inspect

from models.errors import ServiceUnavailableError
from tasks.cohort.write import write_cohort
from tasks.stores.catalog import Catalog
from tasks.stores.places import open_place
from tasks.stores.registry import Registry
from tasks.stores.remote import RemotePlace
from tasks.stores.tables import DatasetRecord, DecisionRow, EvaluationRow, LabelRow, PackageRow, PlanRow, VolumeRow
from tests.components import free_port, until
from tests.faults.failing import Failing, Fault, failing
from tests.faults.night import RECIPE
from tests.faults.serving import LONGEST_SECONDS, Server, serving, started
from tests.matrix import Figure, Times
from tests.objects import ObjectStore, object_store  # noqa: F401
from tests.tasks.stores.conftest import Postgres, postgres  # noqa: F401
from tests.tasks.stores.test_places import KEY, content, publish
from tests.tasks.stores.test_registry import log

FAULTS: tuple[Fault, ...] = ("lost", "cut", "503", "500")


# -- MLflow -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, Failing]]:
    """A real server, and something before it that fails."""
    folder = tmp_path_factory.mktemp("mlflow")
    port, before = free_port(), free_port()
    environment = {**os.environ, "NOCTURNE_HOME": str(folder), "NOCTURNE_SERVICES__MLFLOW_PORT": str(port)}
    with (
        serving("mlflow", f"http://127.0.0.1:{port}/health", environment, folder / "log"),
        failing(before, port) as between,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
        yield Registry(f"http://127.0.0.1:{before}"), between


@pytest.mark.fault("stores/mlflow")
def test_a_registration_that_fails_at_any_request_is_made_once(
    mlflow: tuple[Registry, Failing], tmp_path: Path, times: Times, figure: Figure
) -> None:
    registry, between = mlflow
    between.fail(None)
    log(registry, tmp_path / "calm", name="calm")
    asked = list(between.asked)
    making = [number for number, request in enumerate(asked) if request.rpartition("/")[2] in _MAKING]
    faults = FAULTS[: times(1, full=len(FAULTS))]
    tried = making if len(faults) == 1 else range(len(asked))
    for fault in faults:
        for number in tried:
            name = f"{fault}-{number}"
            # Once, and its client asks again; then until its client gives up, and the door asks again.
            between.fail(fault, at=number, times=1)
            made = log(registry, tmp_path / name, name=name)[1]
            assert between.failed == 1
            once(registry, name, made.run_id)
            between.fail(fault, at=number)
            with pytest.raises(ServiceUnavailableError):
                log(registry, tmp_path / f"{name}-away", name=f"{name}-away")
            between.fail(None)
            made = log(registry, tmp_path / f"{name}-away", name=f"{name}-away")[1]
            once(registry, f"{name}-away", made.run_id)
    figure(f"MLflow's server: {len(faults)} faults at {len(tried)} of {len(asked)} requests; one run, one version")


_MAKING = ("create", "log-batch")
"""The last word of a request that makes something."""


def once(registry: Registry, name: str, run: str) -> None:
    assert [version.version for version in registry.versions(name)] == ["1"]
    experiment = registry._client.get_experiment_by_name(name)
    assert experiment is not None
    assert [found.info.run_id for found in registry._client.search_runs([experiment.experiment_id])] == [run]
    assert len(registry._client.get_metric_history(run, "training/loss")) == 2
    assert len(registry._client.get_run(run).inputs.dataset_inputs) == 1


# -- an object store ----------------------------------------------------------------------------------------------


@pytest.fixture
def between(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:  # noqa: F811
    """What fails before the session's object store, for all clients that are made from now on."""
    import s3fs

    port = free_port()
    with failing(port, object_store.port) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield before
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.fault("stores/s3")
def test_what_is_published_while_an_object_store_fails_is_there_once_and_whole(
    object_store: ObjectStore,  # noqa: F811
    between: Failing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: Times,
    figure: Figure,
) -> None:
    import s3fs

    files = {"a": "1", "deep__b": "2"}
    between.fail(None)
    publish(place_in(object_store, tmp_path / "calm"), KEY, **files)
    requests, cases = len(between.asked), 0
    for fault in FAULTS:
        for number in range(requests):
            here = place_in(object_store, tmp_path / f"{fault}-{number}")
            for turn in range(times(1, full=2)):
                key = f"{turn}{KEY}"
                with monkeypatch.context() as patch:
                    if turn == 0:  # the client gives up at once, and the door asks again
                        patch.setattr(s3fs.S3FileSystem, "retries", 1)
                    between.fail(fault, at=number, times=1)
                    try:
                        publish(here, key, **files)
                    except ServiceUnavailableError:
                        publish(here, key, **files)
                assert between.failed
                between.fail(None)
                there = open_place(here.url, scratch=tmp_path / f"{fault}-{number}-{turn}")
                assert content(there, key) == {"a": "1", "deep/b": "2"}
                cases += 1
            here.sweep(set(here.keys()), older_than_seconds=-1)
            assert len(objects(here)) == 2 * times(1, full=2)
    figure(f"S3: {', '.join(FAULTS)} at each of {requests} requests: {cases} times there once, and whole")


def place_in(store: ObjectStore, scratch: Path) -> RemotePlace:
    place = open_place(f"s3://{store.new_bucket()}/p", scratch=scratch)
    assert isinstance(place, RemotePlace)
    return place


def objects(place: RemotePlace) -> list[str]:
    return [path for path in place._fs.find(place._root) if not path.endswith(".json")]


# -- PostgreSQL ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("stores/postgres")
def test_postgresql_is_restarted_between_an_insert_and_its_commit(
    postgres: Postgres,  # noqa: F811
    tmp_path: Path,
    times: Times,
    figure: Figure,
) -> None:
    cohort = write_cohort(tmp_path / "demo", patients=3, broken=0)
    environment = {
        **os.environ,
        "NOCTURNE_HOME": str(tmp_path / "home"),
        "NOCTURNE_CATALOG_URL": postgres.new_database(),
        "OMP_NUM_THREADS": "1",
    }
    with started(tmp_path / "first", environment, ("volume",), "ingest", str(cohort.incoming)) as command:
        command.reach("volume")
        postgres.stop()
        command.let("volume")
        postgres.start()
        assert command.end() == 0, command.told
    catalog = Catalog(environment["NOCTURNE_CATALOG_URL"])
    found = {kind: catalog.count(kind) for kind in (VolumeRow, LabelRow)}
    assert len({row.series for row in catalog.find(VolumeRow)}) == found[VolumeRow] == 3
    for turn in range(times(0, full=1)):
        with started(tmp_path / f"again{turn}", environment, (), "ingest", str(cohort.incoming)) as command:
            assert command.end() == 0, command.told
        assert {kind: catalog.count(kind) for kind in found} == found
    catalog.close()
    figure("PostgreSQL restarted between insert and commit of a volume: retried; every volume and label once")


@pytest.mark.fault("stores/postgres")
def test_postgresql_is_restarted_while_one_is_alone(postgres: Postgres) -> None:  # noqa: F811
    catalog = Catalog(postgres.new_database())
    with pytest.raises(ServiceUnavailableError), catalog.alone("decisions"):  # noqa: PT012
        postgres.stop()
        postgres.start()
    with catalog.alone("decisions"):
        assert catalog.count(VolumeRow) == 0
    catalog.close()


# -- a night ------------------------------------------------------------------------------------------------------

PARTS = ("volumes", "datasets", "packages", "evaluations")
ROWS = (VolumeRow, LabelRow, DatasetRecord, PlanRow, PackageRow, EvaluationRow, DecisionRow)


@dataclass
class Grown:
    """An installation on PostgreSQL, an object store behind something that fails, and two servers."""

    folder: Path
    environment: dict[str, str]
    prefect: Server
    mlflow: Server

    @property
    def words(self) -> tuple[str, ...]:
        """The night."""
        return "retrain", str(self.folder / "small.toml"), "--from", str(self.folder / "demo" / "incoming")

    def catalog(self) -> Catalog:
        return Catalog(self.environment["NOCTURNE_CATALOG_URL"])

    def written(self) -> dict[str, list[tuple[object, ...]]]:
        """Every row by its key and the moment it was written: what is done twice would show."""
        catalog = self.catalog()
        found = {
            kind.__tablename__: sorted((inspect(row).identity, row.created_at) for row in catalog.find(kind))
            for kind in ROWS
        }
        catalog.close()
        return found

    def registered(self) -> list[str]:
        """The model's versions; there is one run for each."""
        registry = Registry(self.environment["NOCTURNE_TRACKING_URL"])
        versions = registry.versions("small")
        experiment = registry._client.get_experiment_by_name("small")
        assert experiment is not None
        runs = registry._client.search_runs([experiment.experiment_id])
        assert sorted(run.info.run_id for run in runs) == sorted(version.run_id for version in versions)
        return [version.version for version in versions]


@pytest.fixture
def grown(
    postgres: Postgres,  # noqa: F811
    object_store: ObjectStore,  # noqa: F811
    between: Failing,
    tmp_path: Path,
) -> Iterator[Grown]:
    write_cohort(tmp_path / "demo", patients=8)
    (tmp_path / "small.toml").write_text(RECIPE)
    prefect, mlflow, bucket = free_port(), free_port(), object_store.new_bucket()
    environment = {
        **os.environ,
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "NOCTURNE_HOME": str(tmp_path / "home"),
        "NOCTURNE_CATALOG_URL": postgres.new_database(),
        "NOCTURNE_SERVICES__PREFECT_PORT": str(prefect),
        "NOCTURNE_SERVICES__MLFLOW_PORT": str(mlflow),
        **{f"NOCTURNE_{part.upper()}_URL": f"s3://{bucket}/{part}" for part in PARTS},
    }
    served = environment | {"NOCTURNE_HOME": str(tmp_path / "servers")}
    with (
        serving("prefect", f"http://127.0.0.1:{prefect}/api/health", served, tmp_path / "prefect.log") as first,
        serving("mlflow", f"http://127.0.0.1:{mlflow}/health", served, tmp_path / "mlflow.log") as second,
    ):
        named = {
            "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
            "NOCTURNE_TRACKING_URL": f"http://127.0.0.1:{mlflow}",
        }
        yield Grown(tmp_path, environment | named, first, second)


@pytest.mark.fault("stores/postgres", "stores/s3", "stores/prefect", "stores/mlflow")
@pytest.mark.long
def test_a_night_during_which_everything_is_away_once(
    grown: Grown,
    postgres: Postgres,  # noqa: F811
    between: Failing,
    figure: Figure,
) -> None:
    gates = ("upload", "volume", "plan", "step", "package", "version")
    with started(grown.folder / "night", grown.environment, gates, *grown.words) as night:
        night.reach("upload")
        between.fail("503")
        night.let("upload")
        until(lambda: between.failed > 3, "requests to the object store have failed", LONGEST_SECONDS)
        between.fail("cut")
        until(lambda: between.failed > 3, "more of them have failed", LONGEST_SECONDS)
        between.fail(None)
        for gate in ("volume", "plan", "step", "package", "version"):
            night.reach(gate)
            if gate == "step":
                grown.prefect.kill()
                night.let(gate)
                grown.prefect.start()
            elif gate == "version":
                grown.mlflow.kill()
                night.let(gate)
                grown.mlflow.start()
            else:
                postgres.stop()
                night.let(gate)
                postgres.start()
        assert night.end() == 0, night.told
    assert "promoted" in night.told
    written = grown.written()
    single = ("datasets", "plans", "packages", "evaluations", "decisions")
    assert [len(written[table]) for table in single] == [1] * len(single)
    assert grown.registered() == ["1"]
    runs = httpx.post(f"{grown.environment['PREFECT_API_URL']}/flow_runs/filter", json={}, trust_env=False).json()
    assert {run["state_type"] for run in runs} == {"COMPLETED"}

    with started(grown.folder / "again", grown.environment, (), *grown.words) as night:
        assert night.end() == 0, night.told
    assert grown.written() == written
    assert grown.registered() == ["1"]
    figure("a night with PostgreSQL restarted 3 times, Prefect, MLflow and S3 away once each: all there, once")


@pytest.mark.fault("stores/mlflow")
@pytest.mark.long
def test_what_is_away_for_too_long_is_named_and_the_next_start_goes_on(grown: Grown, figure: Figure) -> None:
    with started(grown.folder / "night", grown.environment, ("version",), *grown.words) as night:
        night.reach("version")
        grown.mlflow.kill()
        night.let("version")
        assert night.end() == 1, night.told
    said = " ".join(night.told.split())
    assert "MLflow" in said
    assert grown.environment["NOCTURNE_TRACKING_URL"] in said
    assert "start the same command again" in said
    before = grown.written()
    assert len(before["packages"]) == 1
    grown.mlflow.start()
    with started(grown.folder / "again", grown.environment, (), *grown.words) as night:
        assert night.end() == 0, night.told
    assert "promoted" in night.told
    after = grown.written()
    assert all(set(rows) <= set(after[table]) for table, rows in before.items())
    assert len(after["packages"]) == len(after["decisions"]) == 1
    assert grown.registered() == ["1"]
    figure("MLflow away for good: named with its address; the next start registers the same package, once")


@pytest.mark.fault("stores/prefect")
def test_a_prefect_server_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_cohort(tmp_path / "demo", patients=1, broken=0)
    address = f"http://127.0.0.1:{free_port()}/api"
    environment = {
        **os.environ,
        "COLUMNS": "200",
        "NOCTURNE_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": address,
        "PREFECT_CLIENT_MAX_RETRIES": "0",
    }
    with started(tmp_path / "ingest", environment, (), "ingest", str(tmp_path / "demo" / "incoming")) as command:
        assert command.end() == 1
    said = " ".join(command.told.split())
    assert "Traceback" not in said
    assert "the Prefect server does not answer" in said
    assert address in said
    assert "start the same command again" in said
