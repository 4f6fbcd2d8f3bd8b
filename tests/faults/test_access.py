"""Who can reach what `nocturne up` starts, and who can read its secrets. The first three tests share one `up`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from ipaddress import ip_address
from pathlib import Path

import httpx
import psycopg
import pytest

from flows.doctor import _settings_file
from flows.health import health
from flows.servers import guarded
from flows.up import start
from models.errors import SettingsError
from models.hospital import Services
from models.settings import Settings
from tasks.cohort.write import write_cohort
from tasks.preprocess.cluster import compute_client
from tests.components import free_port, until
from tests.faults.opened import (
    PATIENCE,
    Installation,
    Refuser,
    answers,
    installed,
    leaking,
    other_address,
    reached,
    word,
)
from tests.matrix import Figure
from tests.tasks.stores.conftest import Postgres, postgres  # noqa: F401

OPEN = "0.0.0.0"  # noqa: S104 - what is to be refused


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    assert entry_points(group="mlflow.app", name="nocturne"), "pyproject.toml has changed: run `make setup`"
    with installed(tmp_path_factory.mktemp("up")) as one:
        one.open()
        yield one


@pytest.mark.fault("access/loopback")
def test_every_port_of_up_is_on_loopback_and_shut_to_other_machines(up: Installation, figure: Figure) -> None:
    found = up.listening()
    assert {up.prefect_port, up.mlflow_port} <= {port for _, port in found}
    assert {place: who for place, who in found.items() if not ip_address(place[0]).is_loopback} == {}
    elsewhere = other_address()
    if elsewhere:
        assert [port for _, port in found if reached(elsewhere, port)] == []
    told = f"refused at {'the' if elsewhere else 'no'} address that others use"
    figure(f"`nocturne up`: {len(up.processes())} processes, {len(found)} ports, all on loopback, {told}")


@pytest.mark.fault("access/loopback")
def test_pages_with_a_password_ask_for_it(up: Installation, figure: Figure) -> None:
    asked = {
        "prefect": (f"{up.prefect}/admin/version", f"{up.prefect}/health"),
        "mlflow": (f"{up.mlflow}/version", f"{up.mlflow}/health"),
    }
    for name, (page, open_page) in asked.items():
        assert answers(page) == 401, name
        assert answers(page, ("ana", word("wrong"))) == 401, name
        assert answers(page, ("eva", word(name))) == 401, name
        assert answers(page, ("ana", word(name))) == 200, name
        assert answers(open_page) == 200, "who watches over it needs no password"
    for path in (
        "/",
        "/static-files/index.html",
        "/ajax-api/2.0/mlflow/experiments/search",
        "/get-artifact",
        "/health/",
    ):
        assert answers(f"{up.mlflow}{path}") == 401, path
    figure("Prefect and MLflow with a password: 401 without it and with another, 200 with it")


@pytest.mark.fault("access/secrets")
def test_no_secret_is_told_anywhere(up: Installation, figure: Figure) -> None:
    watch = up.home / "logs" / "watch.log"
    until(lambda: "HTTP 401" in watch.read_text(), "the feed refuses the password")
    code, told = up.command("status")
    assert code == 0, told
    up.command("doctor")
    code, told = up.command("pull", "pacs")
    assert code == 1
    assert "password" in told
    up.close()
    assert leaking((up.home / "nocturne.toml").read_bytes()), "there are some to be found"
    assert any("flows.prefect_server server start" in one for one in up.arguments)
    assert up.leaks() == []
    figure(f"{len(up.arguments)} argument lists of processes, every log, database and printed line: none")


@contextmanager
def with_passwords(server: Postgres, *roles: str) -> Iterator[dict[str, str]]:
    """The server asks these for their passwords; the URL of each one's database."""
    rules = server.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("".join(f"local all {role} scram-sha-256\n" for role in roles) + before)
    databases = {}
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")
        for role in roles:
            name = server.new_database().partition("@/")[2].partition("?")[0]
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{word(role)}'")  # type: ignore[arg-type]
            connection.execute(f'ALTER DATABASE "{name}" OWNER TO {role}')  # type: ignore[arg-type]
            databases[role] = f"{role}:{word(role)}@/{name}?host={server.folder}"
        try:
            yield databases
        finally:
            rules.write_text(before)
            connection.execute("SELECT pg_reload_conf()")


@pytest.mark.long
@pytest.mark.fault("access/loopback", "access/secrets")
def test_a_night_with_a_password_everywhere_and_nights_with_wrong_ones(
    tmp_path: Path,
    postgres: Postgres,  # noqa: F811
    figure: Figure,
) -> None:
    """Three databases that ask for passwords, servers that other machines reach, runs that fail and tell of it."""
    cohort = write_cohort(tmp_path / "demo", patients=8, broken=0).incoming
    with with_passwords(postgres, "catalog", "tracking", "runs") as at:
        urls = {
            "NOCTURNE_CATALOG_URL": f"postgresql://{at['catalog']}",
            "NOCTURNE_TRACKING_URL": f"postgresql+psycopg://{at['tracking']}",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{at['runs']}",
        }
        with installed(tmp_path / "installation", OPEN, **urls) as one:
            one.open()
            reached_by_others(one)
            fail_and_tell(one)
            server = {"PREFECT_API_URL": one.prefect, "PREFECT_API_AUTH_STRING": f"ana:{word('prefect')}"}
            recipe = str(one.home / "small.toml")
            code, told = one.command("retrain", recipe, "--from", str(cohort), **server)
            assert code == 0, told
            wrong = {
                name: url.replace(word(role), word("wrong")) for (name, url), role in zip(urls.items(), at, strict=True)
            }
            for words in (("retrain", recipe), ("status",), ("doctor",)):
                code, told = one.command(*words, **{**server, **wrong})
                assert code == 1, told
                assert "authentication failed" in told, words
            refused_by_database(one, wrong)
            for command in ("status", "doctor"):
                one.command(command, **server)
            one.close()
            for role, place in at.items():
                name = place.partition("@/")[2].partition("?")[0]
                dump = postgres.programs / "pg_dump"
                postgres._run(str(dump), "--file", f"{name}.sql", postgres.url(name))
                (one.folder / f"{role}.sql").write_bytes((postgres.folder / f"{name}.sql").read_bytes())
                assert (one.folder / f"{role}.sql").stat().st_size > 1000
            assert one.leaks() == []
            figure(
                "a night on databases with passwords, five commands that these refuse, a failed run that is told: none"
            )


def reached_by_others(one: Installation) -> None:
    """Pages that are open to other machines ask them for the password."""
    host = other_address() or "127.0.0.1"
    for name, page in (("prefect", f"{one.prefect}/admin/version"), ("mlflow", f"{one.mlflow}/version")):
        from_there = page.replace("127.0.0.1", host)
        assert answers(from_there) == 401, name
        assert answers(from_there, ("ana", word("wrong"))) == 401, name
        assert answers(from_there, ("ana", word(name))) == 200, name


def fail_and_tell(one: Installation) -> None:
    """A run that fails is told to a hook that refuses, and to a mail server that is not there."""
    with httpx.Client(base_url=one.prefect, auth=("ana", word("prefect")), timeout=120, trust_env=False) as client:
        found = client.get("/deployments/name/retrain/small").raise_for_status().json()
        client.post(f"/deployments/{found['id']}/create_flow_run", json={}).raise_for_status()
    until(lambda: Refuser.asked.get("hook"), "the hook is told of the run that failed", PATIENCE)


def refused_by_database(one: Installation, wrong: dict[str, str]) -> None:
    """Servers whose databases refuse their passwords."""
    ports = {name: str(free_port()) for name in ("NOCTURNE_SERVICES__PREFECT_PORT", "NOCTURNE_SERVICES__MLFLOW_PORT")}
    for name in ("prefect", "mlflow"):
        process = one.start("run", name, **wrong, **ports)
        log = one.folder / f"{name}.printed"
        until(
            lambda p=process, f=log: "authentication failed" in f.read_text() or p.poll() is not None,  # type: ignore[misc]
            f"{name} tells that its database refuses it",
            PATIENCE,
        )
        process.terminate()
        process.wait(PATIENCE)
        assert "authentication failed" in log.read_text()


@pytest.mark.fault("access/loopback")
@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_no_server_listens_elsewhere_without_a_password(server: str, tmp_path: Path) -> None:
    for host in (OPEN, "::", "192.0.2.7", "pacs.hospital.example", ""):
        with pytest.raises(SettingsError) as refused:
            guarded(Settings(home=tmp_path, services=Services(host=host)), server)
        assert f"{server}_auth" in str(refused.value)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        guarded(Settings(home=tmp_path, services=Services(host=host)), server)
    guarded(Settings(home=tmp_path, services=Services(host=OPEN), **{f"{server}_auth": "ana:long"}), server)


@pytest.mark.fault("access/loopback")
def test_nothing_is_started_where_one_server_would_be_open(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", services=Services(host=OPEN), prefect_auth="ana:long")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="mlflow would listen"):
        start(settings)
    assert not (tmp_path / "home").exists()


@pytest.mark.fault("access/loopback")
@pytest.mark.parametrize("address", ["tcp://192.0.2.7:8786", "192.0.2.7:8786", "dask.hospital.example:8786"])
def test_a_dask_scheduler_elsewhere_is_not_spoken_to_in_the_clear(address: str) -> None:
    with pytest.raises(SettingsError, match="tls"), compute_client(address, 0):
        pass


@pytest.mark.fault("access/secrets")
def test_a_password_in_an_address_is_not_shown(tmp_path: Path) -> None:
    address = f"http://ana:{word('tracking')}@127.0.0.1:{free_port()}"
    settings = Settings(
        home=tmp_path,
        tracking_url=address,  # type: ignore[arg-type]
        services=Services(prefect_port=free_port()),
    )
    told = {one.name: one for one in health(settings)}
    assert told["mlflow"].state == "away"
    assert not leaking(str(told).encode())


@pytest.mark.fault("access/secrets")
def test_settings_that_others_can_read_are_noted(tmp_path: Path) -> None:
    file = tmp_path / "nocturne.toml"
    assert list(_settings_file(file)) == []
    file.touch()
    for mode, mark in ((0o600, "ok"), (0o400, "ok"), (0o640, "note"), (0o644, "note")):
        file.chmod(mode)
        (check,) = _settings_file(file)
        assert check.mark == mark, oct(mode)


@pytest.mark.fault("access/secrets")
@pytest.mark.parametrize(
    ("name", "value"),
    [("prefect_url", "https://ana:{}@prefect.example/api"), ("prefect_auth", "{}"), ("mlflow_auth", ":{}")],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_shown(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOCTURNE_HOME", str(tmp_path))
    monkeypatch.setenv(f"NOCTURNE_{name.upper()}", value.format(word("wrong")))
    with pytest.raises(SettingsError, match=name) as refused:
        Settings.load()
    assert not leaking(str(refused.value).encode())
