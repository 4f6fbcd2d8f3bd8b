"""Prefect's command line, whose server on SQLite takes the one writer's place at the beginning of each transaction.

Prefect begins most of them as readers. One that then writes, after another wrote in between, is refused at once
("database is locked", SQLITE_BUSY_SNAPSHOT of https://sqlite.org/wal.html): an automation misses its event. And the
cursor that was left open by it is closed by the garbage collector, which may wait for a connection that itself waits
for the writer: for a minute the server answers nobody. A few studies that arrive together bring that about.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_begin_transaction = AioSqliteConfiguration.begin_transaction


@asynccontextmanager
async def _as_writer(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
) -> AsyncGenerator[AsyncSessionTransaction, None]:
    async with _begin_transaction(self, session, with_for_update=True) as transaction:
        yield transaction


AioSqliteConfiguration.begin_transaction = _as_writer  # type: ignore[method-assign]

if __name__ == "__main__":
    app()
