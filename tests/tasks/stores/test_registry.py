"""A real MLflow on SQLite. Making its database takes seconds, so the module shares one."""

from __future__ import annotations

import os
import pickle
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from models.errors import IntegrityError, NotFoundError, PackageError, ServiceUnavailableError, StoreBusyError
from models.package import WEIGHTS_FILE, ModelPackage
from tasks.stores.registry import RegisteredVersion, Registry
from tests.components import free_port
from tests.tasks.register.samples import a_package, an_evaluation


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def registry(home: Path) -> Registry:
    return Registry(f"sqlite:///{home / 'mlflow.db'}", str(home / "artifacts"))


def log(registry: Registry, folder: Path, **which: object) -> tuple[ModelPackage, RegisteredVersion]:
    package = a_package(folder, **which)  # type: ignore[arg-type]
    report = folder.parent / "report.html"
    report.write_text("<html>how good it is</html>")
    scalars = an_evaluation(package).scalars()
    return package, registry.log_package(
        package,
        folder,
        metrics=scalars,
        report=report,
        card="# A liver model",
        document='{"format": 1}',
        tags={"nocturne.night": "17"},
    )


def test_a_package_is_found_again_with_all_that_was_said_of_it(registry: Registry, tmp_path: Path) -> None:
    package, version = log(registry, tmp_path / "p", name="traced")
    assert (version.name, version.version, version.package) == ("traced", "1", package.key)
    assert version.metrics["dice"] == pytest.approx(0.8)
    assert version.metrics["dice/spleen.low"] == pytest.approx(0.67)
    assert version.created is not None
    assert registry.package_key("traced", "1") == package.key
    assert version.page == "#/models/traced/versions/1"
    assert version.run_page == f"#/experiments/{version.experiment_id}/runs/{version.run_id}"

    run = registry._client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe.images.modality"] == '["CT"]'
    assert run.data.params["plan.network.name"] == "unet"
    assert run.data.tags["nocturne.dataset"] == package.dataset
    assert run.data.tags["nocturne.recipe"] == package.recipe.key
    assert run.data.tags["nocturne.plan"] == package.plan.key
    assert run.data.tags["nocturne.weights_sha256"] == package.weights_sha256
    assert run.data.tags["mlflow.source.git.commit"] == "0123abcd"
    assert run.data.tags["nocturne.night"] == "17"
    assert run.inputs.dataset_inputs[0].dataset.digest == package.dataset
    curve = registry._client.get_metric_history(version.run_id, "training/validation")
    assert [(point.step, point.value) for point in curve] == [(100, 0.62), (200, 0.81)]
    assert registry._client.get_model_version("traced", "1").description == "# A liver model"


def test_registering_again_makes_nothing_new(registry: Registry, tmp_path: Path) -> None:
    _, first = log(registry, tmp_path / "p", name="twice")
    _, again = log(registry, tmp_path / "p", name="twice")
    assert again == first
    assert [v.version for v in registry.versions("twice")] == ["1"]
    assert len(registry._client.search_runs([first.experiment_id])) == 1


@pytest.mark.fault("stores/killed")
def test_what_a_killed_process_began_is_finished(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_create_version", killed)
        with pytest.raises(KeyboardInterrupt):
            log(registry, tmp_path / "p", name="killed")
    package, version = log(registry, tmp_path / "p", name="killed")
    assert [v.package for v in registry.versions("killed")] == [package.key]
    assert len(registry._client.search_runs([version.experiment_id])) == 1
    assert len(registry._client.get_metric_history(version.run_id, "training/loss")) == 2


@pytest.mark.fault("stores/killed")
def test_a_database_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as begun:
        begun.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        begun.execute("CREATE TABLE _alembic_tmp_model_versions (name VARCHAR)")
        begun.commit()
    (tmp_path / ".mlflow.db.new").mkdir()
    (tmp_path / ".mlflow.db.new" / "mlflow.db").write_bytes(b"half")
    assert Registry(f"sqlite:///{file}", str(tmp_path / "artifacts")).names() == ()
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


def test_threads_that_register_one_package_get_one_version(registry: Registry, tmp_path: Path) -> None:
    package = a_package(tmp_path / "p", name="raced")
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(registry.log_package, package, tmp_path / "p", metrics={}) for _ in range(4)]
        made = {job.result().version for job in jobs}
    assert [v.version for v in registry.versions("raced")] == sorted(made)
    assert len(made) == 1


def test_only_plain_files_lie_in_the_artifact_store(registry: Registry, home: Path, tmp_path: Path) -> None:
    _, version = log(registry, tmp_path / "p", name="plain")
    files = sorted(p.name for p in (home / "artifacts" / "plain" / version.run_id).rglob("*") if p.is_file())
    assert files == ["MLmodel", "card.json", "card.md", "package.json", "report.html", "weights.safetensors"]


@pytest.mark.fault("models/pickle")
@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "run.py"])
def test_files_that_may_run_code_are_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    package = a_package(tmp_path / "p", name="unsafe")
    (tmp_path / "p" / name).write_bytes(pickle.dumps(1))
    with pytest.raises(PackageError, match=name):
        registry.log_package(package, tmp_path / "p", metrics={})


def test_a_link_out_of_the_package_is_refused(registry: Registry, tmp_path: Path) -> None:
    package = a_package(tmp_path / "p", name="linked")
    (tmp_path / "p" / "extra.json").symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match=r"extra\.json"):
        registry.log_package(package, tmp_path / "p", metrics={})


def test_aliases_say_which_version_serves(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        log(registry, tmp_path / str(number), name="named", number=number)
    assert registry.champion("named") is None
    registry.set_champion("named", "1")
    registry.set_challenger("named", "2")
    champion, challenger = registry.champion("named"), registry.challenger("named")
    assert champion
    assert (champion.version, champion.aliases) == ("1", ("champion",))
    assert challenger
    assert challenger.version == "2"
    registry.set_champion("named", "2")
    assert [(v.version, v.aliases) for v in registry.versions("named")] == [
        ("2", ("challenger", "champion")),
        ("1", ()),
    ]
    registry.clear_challenger("named")
    registry.clear_challenger("named")
    assert registry.challenger("named") is None
    assert "named" in registry.names()


def test_more_than_ten_versions_are_in_order_of_number(registry: Registry, tmp_path: Path) -> None:
    for number in range(1, 12):
        package = a_package(tmp_path / str(number), name="many", number=number)
        registry.log_package(package, tmp_path / str(number), metrics={})
    assert [v.version for v in registry.versions("many")] == [str(n) for n in range(11, 0, -1)]


def test_a_fetched_package_is_the_one_that_was_registered(registry: Registry, tmp_path: Path) -> None:
    package, version = log(registry, tmp_path / "p", name="fetched")
    registry.set_champion("fetched", version.version)
    folder = registry.fetch("fetched", "champion", tmp_path / "into")
    assert ModelPackage.parse((folder / "package.json").read_text()) == package
    assert (folder / WEIGHTS_FILE).read_bytes() == (tmp_path / "p" / WEIGHTS_FILE).read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "card.md", "package.json", "weights.safetensors"]
    assert (folder / "card.json").read_text() == '{"format": 1}'
    assert registry.fetch("fetched", "1", tmp_path / "into") == folder


@pytest.mark.fault("models/hash")
def test_weights_that_were_changed_in_the_store_are_refused(registry: Registry, home: Path, tmp_path: Path) -> None:
    _, version = log(registry, tmp_path / "p", name="tampered")
    stored = home / "artifacts" / "tampered" / version.run_id / "artifacts" / "package" / WEIGHTS_FILE
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(IntegrityError, match=version.package):
        registry.fetch("tampered", "1", tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_what_is_unknown_is_told_as_not_found(registry: Registry, tmp_path: Path) -> None:
    log(registry, tmp_path / "p", name="known")
    for ask in (
        lambda: registry.champion("never-heard-of"),
        lambda: registry.versions("never-heard-of"),
        lambda: registry.version("known", "99"),
        lambda: registry.set_champion("known", "99"),
        lambda: registry.fetch("known", "champion", tmp_path),
    ):
        with pytest.raises(NotFoundError):
            ask()


def test_two_registries_do_not_disturb_one_another(registry: Registry, tmp_path: Path) -> None:
    other = Registry(f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}", str(tmp_path / "other"))
    package = a_package(tmp_path / "p", name="elsewhere")
    with ThreadPoolExecutor(2) as pool:
        here = pool.submit(log, registry, tmp_path / "here", name="at-home")
        there = pool.submit(other.log_package, package, tmp_path / "p", metrics={})
        here.result(), there.result()
    assert other.names() == ("elsewhere",)
    assert "elsewhere" not in registry.names()
    assert not (Path.cwd() / "mlruns").exists()


def test_a_locked_database_is_told_as_busy(registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names()
    from mlflow.store.db import utils

    real = utils.sql.text
    monkeypatch.setattr(utils.sql, "text", lambda t: real(t.replace("busy_timeout = 20000", "busy_timeout = 50")))
    with sqlite3.connect(home / "mlflow.db", isolation_level=None) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreBusyError):
            registry.set_champion("anything", "1")
        lock.execute("ROLLBACK")


@pytest.mark.fault("stores/mlflow")
def test_a_server_that_is_away_is_told_as_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceUnavailableError):
        Registry(f"http://127.0.0.1:{free_port()}").names()


def test_telemetry_is_off(registry: Registry) -> None:
    registry.names()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
