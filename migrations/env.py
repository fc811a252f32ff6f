"""Alembic's async environment: DATABASE_URL says where, `app.schema.metadata` says what."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import SchemaItem

from app.schema import SHARD_TABLE_PREFIX, metadata

_MIGRATING = 0x534C55494345_4D  # "SLUICEM"
_ASK_AGAIN_SECONDS = 0.2


def _database_url() -> str:
    url = context.config.attributes.get("database_url") or os.environ.get("DATABASE_URL")
    if not url:
        sys.exit("alembic: DATABASE_URL is missing: postgresql://user:password@host:port/database")
    return str(url)


def _is_managed(
    _item: SchemaItem, name: str | None, kind: str, _reflected: object, _compare_to: SchemaItem | None
) -> bool:
    """Partitions of `chunks` (and their indexes) are made at run time."""
    return not (kind in {"table", "index"} and name is not None and name.startswith(SHARD_TABLE_PREFIX))


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, include_object=_is_managed)
    with context.begin_transaction():
        context.run_migrations()


async def _run_online() -> None:
    url = _database_url()

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(url)  # reads every parameter of a URL; SQLAlchemy would pass them on

    engine = create_async_engine("postgresql+asyncpg://", poolclass=pool.NullPool, async_creator=connect)
    async with _only_one(await connect()), engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


@asynccontextmanager
async def _only_one(conn: asyncpg.Connection) -> AsyncIterator[None]:
    """Wait until nobody else migrates this database; by asking, for CREATE INDEX CONCURRENTLY waits for waiters."""
    try:
        while not await conn.fetchval("SELECT pg_try_advisory_lock($1)", _MIGRATING):  # noqa: ASYNC110
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
        yield
    finally:
        await conn.close()


def _run_offline() -> None:
    context.configure(url=_database_url(), target_metadata=metadata, literal_binds=True, include_object=_is_managed)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _run_offline()
else:
    asyncio.run(_run_online())
