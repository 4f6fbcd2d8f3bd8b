"""What the catalog promises, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError as ConstraintError

from models.errors import ServiceUnavailableError, SettingsError, StoreBusyError, is_transient
from tasks.stores import catalog as module
from tasks.stores.catalog import HEAD, Catalog
from tasks.stores.tables import Base, DecisionRow, QuarantineRow, SeriesRow, StudyRow
from tests.tasks.stores.conftest import Postgres


def a_series(key: str, study: str = "2.25.1") -> SeriesRow:
    return SeriesRow(series=key, series_uid=f"2.25.{key}", study=study, patient="P-1", modality="CT")


def processes(url: str, script: str, count: int) -> None:
    """Run `script` in fresh interpreters at once; each gets the URL and its number."""
    running = [
        subprocess.Popen([sys.executable, "-c", script, url, str(i)], stderr=subprocess.PIPE, text=True)
        for i in range(count)
    ]
    for process in running:
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told


def test_migrations_make_exactly_the_tables_that_the_code_describes(catalog: Catalog) -> None:
    with catalog.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert catalog.version() == HEAD


def test_the_code_knows_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_opening_again_finds_what_was_there(database_url: str) -> None:
    first = Catalog(database_url)
    first.add(StudyRow(study="2.25.1", patient="P-1"))
    first.close()
    second = Catalog(database_url)
    assert second.count(StudyRow) == 1
    second.close()


def test_adding_twice_keeps_the_first(catalog: Catalog) -> None:
    assert catalog.add(StudyRow(study="2.25.1", patient="P-1", study_date="20200101")) == 1
    assert catalog.add(StudyRow(study="2.25.1", patient="P-1", study_date="20990101"), a_series("s")) == 1
    row = catalog.get(StudyRow, "2.25.1")
    assert row
    assert row.study_date == "20200101"
    assert catalog.get(StudyRow, "2.25.2") is None


def test_rows_come_back_as_they_went_in(catalog: Catalog) -> None:
    at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    figures = {"dice": 0.1 + 0.2, "classes": ["Leber", "Milz ü"], "none": None, "deep": {"a": [1, 2]}}
    catalog.add(DecisionRow(name="m", action="kept", package="p", version="1", figures=figures, created_at=at))
    (row,) = catalog.find(DecisionRow)
    assert row.figures == figures
    assert row.created_at == at
    assert row.created_at.tzinfo is not None
    assert row.number == 1


def test_times_in_other_zones_are_the_same_instant(catalog: Catalog) -> None:
    local = datetime.fromisoformat("2026-07-01T12:00:00+02:00")
    catalog.add(StudyRow(study="2.25.1", patient="P-1", created_at=local))
    row = catalog.get(StudyRow, "2.25.1")
    assert row
    assert row.created_at == local
    assert row.created_at.tzinfo is UTC


def test_a_row_cannot_refer_to_what_is_not_there(catalog: Catalog) -> None:
    with pytest.raises(ConstraintError):
        catalog.add(a_series("s", study="2.25.404"))
    assert catalog.count(SeriesRow) == 0


def test_a_transaction_is_all_or_nothing(catalog: Catalog) -> None:
    with pytest.raises(ConstraintError):
        catalog.add(StudyRow(study="2.25.1", patient="P-1"), a_series("s", study="2.25.404"))
    assert catalog.count(StudyRow) == 0


def test_find_filters_orders_and_limits(catalog: Catalog) -> None:
    catalog.add(*(StudyRow(study=f"2.25.{i}", patient=f"P-{i % 2}") for i in range(6)))
    odd = catalog.find(StudyRow, StudyRow.patient == "P-1", order_by=StudyRow.study.desc(), limit=2)
    assert [row.study for row in odd] == ["2.25.5", "2.25.3"]


def test_change_tells_how_many_rows_it_met(catalog: Catalog) -> None:
    catalog.add(*(QuarantineRow(entry=str(i), stage="ingest", subject="s", reason="r", what="w") for i in range(3)))
    assert catalog.change(QuarantineRow, QuarantineRow.entry != "0", hint="look") == 2
    assert catalog.change(QuarantineRow, QuarantineRow.entry == "9", hint="look") == 0
    assert catalog.count(QuarantineRow, QuarantineRow.hint == "look") == 2


def test_threads_that_write_at_once_lose_nothing(catalog: Catalog) -> None:
    def write(thread: int) -> int:
        return sum(catalog.add(StudyRow(study=f"2.25.{thread}.{i}", patient="P-1")) for i in range(15))

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(write, range(6))) == 90
    assert catalog.count(StudyRow) == 90


def test_of_threads_that_add_the_same_row_one_wins(catalog: Catalog) -> None:
    start = threading.Barrier(6)

    def write(_: int) -> int:
        start.wait(timeout=300)
        return catalog.add(StudyRow(study="2.25.1", patient="P-1"))

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(write, range(6))) == 1


def test_a_reader_sees_one_moment(catalog: Catalog) -> None:
    catalog.add(StudyRow(study="2.25.1", patient="P-1"))
    with catalog.reading() as session:
        before = session.query(StudyRow).all()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(catalog.add, StudyRow(study="2.25.2", patient="P-1")).result(timeout=300)
        assert session.query(StudyRow).all() == before
    assert catalog.count(StudyRow) == 2


def test_processes_that_migrate_and_write_at_once_lose_nothing(database_url: str) -> None:
    script = """
import sys
from tasks.stores.catalog import Catalog
from tasks.stores.tables import StudyRow
catalog = Catalog(sys.argv[1])
for i in range(20):
    catalog.add(StudyRow(study=f"2.25.{sys.argv[2]}.{i}", patient="P-1"), StudyRow(study="2.25.7", patient="P-1"))
"""
    processes(database_url, script, 3)
    catalog = Catalog(database_url)
    assert catalog.count(StudyRow) == 61
    assert catalog.version() == HEAD
    catalog.close()


def test_only_one_at_a_time_is_alone(catalog: Catalog) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(i: int) -> None:
        with catalog.alone("test"):
            inside.append(i)
            most.append(len(inside))
            catalog.add(StudyRow(study=f"2.25.{i}", patient="P-1"))
            inside.remove(i)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
    assert max(most) == 1
    with pytest.raises(RuntimeError), catalog.alone("test"):
        raise RuntimeError
    with catalog.alone("test"):
        assert catalog.count(StudyRow) == 12


def test_a_catalog_of_a_newer_nocturne_is_refused(database_url: str) -> None:
    catalog = Catalog(database_url)
    with catalog.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    catalog.close()
    with pytest.raises(SettingsError, match="9999"):
        Catalog(database_url)


@pytest.mark.fault("stores/locked")
def test_a_lock_held_too_long_is_told_as_busy(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2)
    holder, waiter = Catalog(database_url), Catalog(database_url)
    with holder.transaction() as session:
        session.execute(text("INSERT INTO studies VALUES ('2.25.1', 'P-1', '', '2026-01-01')"))
        with pytest.raises(StoreBusyError) as caught:
            waiter.add(StudyRow(study="2.25.1", patient="P-1"))
    assert is_transient(caught.value)
    assert (f"(process {os.getpid()}) holds" if "sqlite" in database_url else "pg_stat_activity") in str(caught.value)
    assert waiter.add(StudyRow(study="2.25.1", patient="P-1")) == 0
    holder.close(), waiter.close()


@pytest.mark.fault("stores/postgres")
def test_a_database_that_went_away_is_told_and_found_again(postgres: Postgres) -> None:
    catalog = Catalog(postgres.new_database())
    catalog.add(StudyRow(study="2.25.1", patient="P-1"))
    postgres.stop()
    try:
        with pytest.raises(ServiceUnavailableError):
            catalog.count(StudyRow)
        with pytest.raises(ServiceUnavailableError):
            Catalog(str(catalog.url.render_as_string(hide_password=False)))
        with pytest.raises(ServiceUnavailableError), catalog.alone("test"):
            pass
    finally:
        postgres.start()
    assert catalog.count(StudyRow) == 1
    catalog.close()


def test_a_server_that_dies_in_a_transaction_leaves_nothing(postgres: Postgres) -> None:
    catalog = Catalog(postgres.new_database())
    try:
        with pytest.raises(ServiceUnavailableError), catalog.transaction() as session:  # noqa: PT012
            session.add(StudyRow(study="2.25.1", patient="P-1"))
            session.flush()
            postgres.stop()
            session.add(StudyRow(study="2.25.2", patient="P-1"))
    finally:
        postgres.start()
    assert catalog.count(StudyRow) == 0
    catalog.close()


def test_a_wrong_address_is_the_settings_fault(postgres: Postgres, tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        Catalog(postgres.url("no-such-database"))
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(SettingsError):
        Catalog(f"sqlite:///{tmp_path / 'folder.db'}")


def test_a_damaged_file_is_told_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(OSError, match="damaged"):
        Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")


@pytest.mark.fault("stores/killed")
def test_a_killed_writer_leaves_a_whole_catalog(database_url: str) -> None:
    catalog = Catalog(database_url)
    script = """
import os, sys
from sqlalchemy import text
from tasks.stores.catalog import Catalog
catalog = Catalog(sys.argv[1])
with catalog.transaction() as session:
    session.execute(text("INSERT INTO studies VALUES ('2.25.1', 'P-1', '', '2026-01-01')"))
    os._exit(0)
"""
    processes(database_url, script, 1)
    assert catalog.count(StudyRow) == 0
    assert catalog.add(StudyRow(study="2.25.1", patient="P-1")) == 1
    catalog.close()
