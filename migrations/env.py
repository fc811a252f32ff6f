"""Alembic's async environment: DATABASE_URL says where, `app.schema.metadata` says what."""

import asyncio
import os
import sys

import asyncpg
from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import SchemaItem

from app.schema import SHARD_TABLE_PREFIX, metadata


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
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


def _run_offline() -> None:
    context.configure(url=_database_url(), target_metadata=metadata, literal_binds=True, include_object=_is_managed)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _run_offline()
else:
    asyncio.run(_run_online())
