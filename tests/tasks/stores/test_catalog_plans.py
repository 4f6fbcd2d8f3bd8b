"""What is asked by day and by night is answered by indexes, however much the catalog holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from tasks.stores.catalog import Catalog, distinct, in_parts
from tasks.stores.house import Locations, Stores
from tasks.stores.tables import LabelRow, VolumeRow
from tests.tasks.stores.asking import build, day, looks, origins, recipe_of
from tests.tasks.stores.conftest import Postgres
from tests.tasks.stores.crowd import CHEST, LIVER, Crowd, settle

CROWD = Crowd(20_000)
BIG = 4_000
"""A table of fewer rows may be read as a whole."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    folder = tmp_path_factory.mktemp("crowd")
    if request.param == "sqlite":
        url = f"sqlite:///{folder / 'catalog.db'}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.new_database()
    places = {name: str(folder / name) for name in ("volumes", "prepared", "datasets", "evaluations", "packages")}
    opened = Stores(
        Locations(
            home=folder,
            database=url,
            spool=folder / "spool",
            tracking=f"sqlite:///{folder / 'mlflow.db'}",
            secret=b"s" * 32,
            vault_key=b"v" * 32,
            **places,
        )
    )
    CROWD.fill(opened.catalog)
    yield opened
    opened.catalog.close()


@contextmanager
def heard(catalog: Catalog) -> Iterator[list[tuple[str, Any]]]:
    """Every statement that reads or changes what is there."""
    found: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.lstrip().split()[0] in ("SELECT", "UPDATE", "DELETE") and not many:
            found.append((statement, parameters))

    event.listen(catalog.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(catalog.engine, "before_cursor_execute", note)


def scanned(catalog: Catalog, statement: str, parameters: Any) -> set[str]:
    """The tables of which all rows would be looked at."""
    with catalog.engine.connect() as connection:
        if catalog.engine.dialect.name == "sqlite":
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            found = (re.match(r"SCAN (\w+)(?! USING)", row[-1]) for row in plan)
            return {re.sub(r"_\d+$", "", match[1]) for match in found if match and " USING " not in match.string}
        told = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar()
        return set(_sequential((told if isinstance(told, list) else json.loads(str(told)))[0]["Plan"]))


def _sequential(node: dict[str, Any]) -> Iterator[str]:
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for below in node.get("Plans", ()):
        yield from _sequential(below)


def sizes(catalog: Catalog) -> dict[str, int]:
    with catalog.engine.connect() as connection:
        names = [name for (name,) in connection.execute(text(_TABLES[catalog.engine.dialect.name]))]
        return {name: int(connection.scalar(text(f'SELECT count(*) FROM "{name}"')) or 0) for name in names}  # noqa: S608


_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
    "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
}

ASKED: dict[str, Callable[[Stores], object]] = {
    "a day": lambda stores: day(stores, CROWD),
    "corrections and watching": lambda stores: [looks(stores, name, patients=10) for name in (LIVER, CHEST)],
    "lineage": lambda stores: origins(stores, CROWD),
}


@pytest.mark.parametrize("what", ASKED)
def test_no_question_reads_a_big_table_as_a_whole(stores: Stores, what: str) -> None:
    big = {name for name, rows in sizes(stores.catalog).items() if rows >= BIG}
    assert {"volumes", "series", "labels", "predictions", "outbox", "instances", "study_versions", "vault"} <= big
    if what == "corrections and watching":
        stores.catalog.mark("corrections", "2026-09-30T00:00:00+00:00")  # all was looked at once
    with heard(stores.catalog) as statements:
        ASKED[what](stores)
    assert len(statements) > 20
    plans = {
        statement: scanned(stores.catalog, statement, asked) & big for statement, asked in dict(statements).items()
    }
    assert not {statement: found for statement, found in plans.items() if found}


def test_a_dataset_is_what_it_was_and_its_long_answers_come_in_parts(stores: Stores) -> None:
    with heard(stores.catalog) as statements:
        built = build(stores, recipe_of(LIVER))
    meant = {number for model, number in CROWD.meant() if model == LIVER}
    assert len(built.dataset.rows) == len(meant)
    assert built.reasons == {"other-description": CROWD.series * 9 // 20 - len(meant)}
    assert build(stores, recipe_of(LIVER)).ref == built.ref
    assert not [s for s, _ in statements if "geometry" in s], "what no rule asks for is not fetched"


def test_some_of_the_radiographs(stores: Stores) -> None:
    built = build(stores, recipe_of(CHEST, 3))
    assert {row.modality for row in built.dataset.rows} == {"DX"}
    described = {"Chest 00", "Chest 01", "Chest 02"}
    meant = [number for model, number in CROWD.meant() if CROWD.description(number) in described]
    assert len(built.dataset.rows) == len(meant) > 500
    assert built.reasons == {"other-description": CROWD.series // 5 - len(meant)}
    assert built.dataset.classes == ("normal", "effusion", "pneumonia")


def test_values_without_looking_at_all_rows(stores: Stores) -> None:
    with stores.catalog.reading() as session, heard(stores.catalog) as statements:
        assert list(distinct(session, LabelRow.source)) == ["CSV", "SEG"]
        assert list(distinct(session, LabelRow.name, LabelRow.source == "CSV")) == ["findings"]
        assert list(distinct(session, LabelRow.name, LabelRow.source == "NIfTI")) == []
    assert len(statements) == 3 + 2 + 1
    for statement, parameters in statements:
        assert "labels" not in scanned(stores.catalog, statement, parameters)


def test_parts_are_all_of_it(stores: Stores) -> None:
    from sqlalchemy import select

    with stores.catalog.reading() as session:
        found = set(in_parts(session, select(VolumeRow.volume)))
    assert len(found) == CROWD.series


def test_marks_are_kept(stores: Stores) -> None:
    assert stores.catalog.marked("somewhere") is None
    stores.catalog.mark("somewhere", "here")
    stores.catalog.mark("somewhere", "there")
    assert stores.catalog.marked("somewhere") == "there"


def test_a_crowd_obeys_the_constraints(stores: Stores) -> None:
    """Rows went past the foreign keys: none of them points nowhere."""
    with stores.catalog.engine.connect() as connection:
        if stores.catalog.engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
            return
        keys = connection.execute(text(_KEYS)).all()
        assert keys
        for child, column, parent, named in keys:
            lost = text(
                f"SELECT count(*) FROM {child} c LEFT JOIN {parent} p ON c.{column} = p.{named} "  # noqa: S608
                f"WHERE c.{column} IS NOT NULL AND p.{named} IS NULL"
            )
            assert connection.scalar(lost) == 0, (child, column)
    settle(stores.catalog)


_KEYS = """
SELECT c.conrelid::regclass::text, a.attname, c.confrelid::regclass::text, b.attname
FROM pg_constraint c
JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
JOIN pg_attribute b ON b.attrelid = c.confrelid AND b.attnum = c.confkey[1]
WHERE c.contype = 'f'
"""
