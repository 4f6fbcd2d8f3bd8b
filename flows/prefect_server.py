"""Prefect's command line, whose server keeps its database in SQLite and stays up when a few studies arrive together.

Prefect begins most transactions as readers. One that then writes, after another wrote in between, is refused at once
("database is locked", SQLITE_BUSY_SNAPSHOT of https://sqlite.org/wal.html): an automation misses its event. And the
cursor that it left open is closed by the garbage collector, which may wait for a connection that itself waits for the
writer: for a minute the server answers nobody. Here each transaction waits for the one writer's place when it begins.

Each of Prefect's connections also keeps up to 80 MB of the database, beside the system's cache; here it is 8.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry

_CACHE_KB = 8192

_begin_transaction = AioSqliteConfiguration.begin_transaction
_setup_sqlite = AioSqliteConfiguration.setup_sqlite


@asynccontextmanager
async def _as_writer(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
) -> AsyncGenerator[AsyncSessionTransaction, None]:
    async with _begin_transaction(self, session, with_for_update=True) as transaction:
        yield transaction


def _with_less_cache(self: AioSqliteConfiguration, conn: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    _setup_sqlite(self, conn, record)
    cursor = conn.cursor()
    cursor.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
    cursor.close()


AioSqliteConfiguration.begin_transaction = _as_writer  # type: ignore[method-assign]
AioSqliteConfiguration.setup_sqlite = _with_less_cache  # type: ignore[method-assign]

if __name__ == "__main__":
    app()
