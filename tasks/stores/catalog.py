"""The catalog: the SQL record of what is known. A thing exists when its row is committed.

SQLite (WAL, foreign keys on) by default, PostgreSQL when outgrown; the same models and migrations serve both.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Engine, Select, create_engine, event, func, inspect, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import InstrumentedAttribute, Session, sessionmaker

from models.errors import IntegrityError, ServiceUnavailableError, SettingsError, StoreBusyError
from tasks.stores.locks import held, who_holds
from tasks.stores.tables import Base, CursorRow, now

HEAD = "0007"
KEYS_AT_ONCE: Final = 400
"""Values in one IN: databases bound how many."""
ROWS_AT_ONCE: Final = 2000
"""Rows of a long answer that are fetched at a time."""
BUSY_SECONDS = 30

Row = TypeVar("Row", bound=Base)
Key = TypeVar("Key")
T = TypeVar("T")


class Catalog:
    """One database. Safe to share between threads; `Catalog(url)` brings its tables up to date."""

    def __init__(self, url: str) -> None:
        self.url = make_url(_with_driver(url))
        self._lite = self.url.get_backend_name() == "sqlite"
        if self._lite and self.url.database and self.url.database != ":memory:":
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        self._file = Path(self.url.database) if self._lite and self.url.database else None
        self.engine = _engine(self.url.render_as_string(hide_password=False), lite=self._lite)
        view = self.engine if self._lite else self.engine.execution_options(isolation_level="REPEATABLE READ")
        self._readers = sessionmaker(view, expire_on_commit=False)
        self._writers = sessionmaker(self.engine.execution_options(writes=True), expire_on_commit=False)
        self._lock = threading.RLock()
        self._migrate()

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """All or nothing. Raises StoreBusyError or ServiceUnavailableError where waiting may help."""
        with _healing(self._file), self._writers.begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A consistent view; waits for nobody."""
        with _healing(self._file), self._readers.begin() as session:
            yield session

    def add(self, *rows: Base) -> int:
        """Insert rows in one transaction, in order; a row whose key is there is left. Returns how many were new."""
        with self.transaction() as session:
            return sum(self.insert(session, row) for row in rows)

    def get(self, kind: type[Row], key: Any) -> Row | None:
        """The row with this primary key, or None."""
        with self.reading() as session:
            return session.get(kind, key)

    def find(
        self, kind: type[Row], *where: ColumnElement[bool], order_by: Any = None, limit: int | None = None
    ) -> Sequence[Row]:
        """All rows that meet every condition."""
        query = select(kind).where(*where)
        query = query.order_by(order_by) if order_by is not None else query
        with self.reading() as session:
            return session.scalars(query.limit(limit) if limit else query).all()

    def among(
        self,
        kind: type[Row],
        column: InstrumentedAttribute[Any],
        keys: Iterable[Any],
        *where: ColumnElement[bool],
        order_by: Any = None,
    ) -> Iterator[Row]:
        """The rows whose `column` is one of `keys`, however many; in `order_by` within each part of them."""
        for part in by_parts(keys):
            yield from self.find(kind, column.in_(part), *where, order_by=order_by)

    def count(self, kind: type[Row], *where: ColumnElement[bool]) -> int:
        """How many rows meet every condition."""
        with self.reading() as session:
            return session.scalar(select(func.count()).select_from(kind).where(*where)) or 0

    def change(self, kind: type[Row], /, *where: ColumnElement[bool], **values: Any) -> int:
        """Update the rows that meet every condition; returns how many."""
        with self.transaction() as session:
            return session.execute(update(kind).where(*where).values(**values)).rowcount  # type: ignore[attr-defined, no-any-return]

    def marked(self, name: str) -> str | None:
        """How far something was read, where that was said."""
        row = self.get(CursorRow, name)
        return None if row is None else row.value

    def mark(self, name: str, value: str) -> None:
        """Remember how far something was read."""
        with self.transaction() as session:
            self.put(session, CursorRow, {"name": name}, {"value": value, "changed_at": now()})

    def put(self, session: Session, kind: type[Base], key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Write a row by its primary key, in place of one that is there."""
        statement = (sqlite if self._lite else postgresql).insert(kind).values(**key, **values)
        session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))

    def version(self) -> str | None:
        """The migration that the tables are at."""
        try:
            with self.engine.connect() as connection:
                return connection.scalar(text("SELECT version_num FROM alembic_version"))
        except DBAPIError as error:
            if _missing_table(error):
                return None
            raise _translated(error, self._file) from error

    def insert(self, session: Session, row: Base) -> int:
        """Insert a row within a transaction; one whose key is there is left. Returns how many were new."""
        insert = (sqlite if self._lite else postgresql).insert
        table = inspect(type(row)).local_table
        values = {f.name: getattr(row, f.name) for f in fields(row) if f.init}
        # Not rowcount: psycopg does not know it where SQLAlchemy asks for the new key.
        statement = insert(table).values(**values).on_conflict_do_nothing().returning(*table.primary_key)
        return len(session.execute(statement).all())

    def _migrate(self) -> None:
        found = self.version()
        if found == HEAD:
            return
        if found is not None and found > HEAD:
            raise SettingsError(
                f"the catalog is at version {found}, this Nocturne knows {HEAD}",
                hint="install the newer Nocturne that wrote it",
            )
        with self.alone("migration"):
            if self.version() == HEAD:
                return
            from alembic import command
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            with self.engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """One thread of one process at a time does `what` on this database; others wait. Holds no table locked."""
        if not self._lite:
            key = {"key": int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], signed=True)}
            with ExitStack() as stack:
                with _healing(self._file):
                    connection = stack.enter_context(self.engine.connect())
                    connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
                    connection.commit()  # the lock is the session's: no transaction has to stay open for it
                try:
                    yield
                finally:
                    # A server that was restarted has let go of it: somebody else may have been here.
                    with _healing(self._file):
                        connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)
                        connection.commit()
            return
        if not self.url.database or self.url.database == ":memory:":
            with self._lock:
                yield
            return
        with held(Path(f"{self.url.database}.{what}.lock")):
            yield


def in_parts(session: Session, query: Select[tuple[T]]) -> Iterator[T]:
    """Each row of a long answer, fetched from the server in parts: neither it nor we ever hold all of it."""
    return iter(session.scalars(query.execution_options(yield_per=ROWS_AT_ONCE)))


def distinct(session: Session, column: InstrumentedAttribute[str], *where: ColumnElement[bool]) -> Iterator[str]:
    """The values of a column, in order, each by one look into an index on `where` and it: however many rows have it."""
    last: str | None = None
    while True:
        beyond = () if last is None else (column > last,)
        last = session.scalar(select(func.min(column)).where(*where, *beyond))
        if last is None:
            return
        yield last


def by_parts(keys: Iterable[Key]) -> Iterator[Sequence[Key]]:
    """So many at a time as one query may ask for."""
    wanted = list(keys)
    return (wanted[start : start + KEYS_AT_ONCE] for start in range(0, len(wanted), KEYS_AT_ONCE))


def _with_driver(url: str) -> str:
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    return url


def _engine(url: str, *, lite: bool) -> Engine:
    return _sqlite(url) if lite else _postgresql(url)


def _postgresql(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, record: Any) -> None:
        connection.execute(f"SET lock_timeout = {int(BUSY_SECONDS * 1000)}")  # by default it waits for ever
        connection.commit()

    return engine


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, record: Any) -> None:
        # The driver's own transaction handling begins too late for BEGIN IMMEDIATE to take the write lock.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A writer takes the lock at once: a read that turns into a write halfway may fail with "locked" at any time.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


@contextmanager
def _healing(file: Path | None) -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise StoreBusyError("all connections to the catalog are in use", where="catalog") from error
    except DBAPIError as error:
        raise _translated(error, file) from error


_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "55P03", "40P01", "40001", "53300")  # locks, deadlock, too many connections
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "XX001", "XX002")
_WRONG = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH", "28", "3D", "42501")  # who or where
_WRONG_WORDS = ("does not exist", "authentication failed", "no password supplied", "no pg_hba.conf entry")


def _translated(error: DBAPIError, file: Path | None) -> Exception:
    """The error in our tree; a broken constraint or statement is a fault of ours and stays as it is.

    `file` is the database's, where it is one.
    """
    told = str(error.orig).splitlines()[0] if error.orig else "no detail"
    code = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
    if code.startswith(_BUSY) or "too many clients" in told:
        told = f"the catalog is locked by another process for over {BUSY_SECONDS} s"
        return StoreBusyError(told, where="catalog", hint=_who_holds(file))
    if code.startswith(_DAMAGED):
        return IntegrityError(f"the catalog's database is damaged: {told}", where="catalog", hint="restore its backup")
    if not isinstance(error, OperationalError) and not error.connection_invalidated:
        return error
    if code.startswith(_WRONG) or (not code and any(words in told for words in _WRONG_WORDS)):
        return SettingsError(
            f"the catalog cannot be opened: {told}",
            where="catalog",
            hint="look at NOCTURNE_CATALOG_URL, its user and its folder's permissions",
        )
    return ServiceUnavailableError(f"the catalog's database does not answer: {told}", where="catalog")


def _who_holds(file: Path | None) -> str:
    """What to do about a lock that does not go away."""
    if file is not None:
        return who_holds(file)
    return "look for a transaction that is left open: `SELECT * FROM pg_stat_activity WHERE state LIKE 'idle in%'`"


def _missing_table(error: DBAPIError) -> bool:
    return "no such table" in str(error.orig) or getattr(error.orig, "sqlstate", "") == "42P01"
