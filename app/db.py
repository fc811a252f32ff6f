"""Postgres: one asyncpg pool a process, and `transaction()`, the only place that begins and commits."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import anyio
import asyncpg
import structlog

from app.errors import Broken, Transient

# generic for the type checker only (asyncpg-stubs), hence the quotes
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

_PASSING = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that broke in the middle of a COPY
    asyncpg.ReadOnlySQLTransactionError,  # a primary that has become a replica
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,  # shutting down, backend terminated, cannot connect now
    asyncpg.IdleInTransactionSessionTimeoutError,  # this process stood still for too long
    asyncpg.InvalidCachedStatementError,  # a migration came meanwhile
)

_USED_UP = (asyncpg.InternalClientError, asyncpg.ReadOnlySQLTransactionError, TimeoutError)
"""After these a connection is broken, silent, or leads to the wrong server."""
_MOST_SECONDS_A_STATEMENT = 120.0
LONG_STATEMENT_SECONDS = 3600.0
"""For what grows with a vector store and has to be one statement: its deletion."""
_ASK_AGAIN_SECONDS = 0.5
_ACQUIRE_SECONDS = 10
_GOODBYE_SECONDS = 2.0
_MOST_IDLE_SECONDS = 15.0

logger = structlog.stdlib.get_logger(__name__)


class DatabaseUnavailable(Transient):
    """Postgres does not answer; check DATABASE_URL and that the server runs."""


class NoConnection(DatabaseUnavailable):
    """No connection to Postgres was free, or could be made, within 10 seconds."""

    costs_attempt = False


class Locked(DatabaseUnavailable):
    """Another request, or a worker, is changing what this one is to change; try again."""

    costs_attempt = False


class NotMigrated(Broken):
    """The database is not migrated: run 'alembic upgrade head' with its DATABASE_URL."""


async def _prepare_connection(conn: Any) -> None:
    await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def open_pool_patiently(
    url: str,
    *,
    max_size: int,
    application_name: str,
    patience_seconds: float,
    most_idle_seconds: float = _MOST_IDLE_SECONDS,
    most_locked_seconds: float = 0.0,
) -> Pool:
    """As `open_pool`, but while Postgres is away it is asked again for so long."""
    until = anyio.current_time() + patience_seconds
    while True:
        try:
            return await open_pool(
                url,
                max_size=max_size,
                application_name=application_name,
                most_idle_seconds=most_idle_seconds,
                most_locked_seconds=most_locked_seconds,
            )
        except DatabaseUnavailable as exc:
            if anyio.current_time() >= until:
                raise
            logger.warning("waiting for Postgres", error=str(exc))
        await anyio.sleep(_ASK_AGAIN_SECONDS)


async def open_pool(
    url: str,
    *,
    max_size: int,
    application_name: str,
    most_idle_seconds: float = _MOST_IDLE_SECONDS,
    most_locked_seconds: float = 0.0,
) -> Pool:
    """A pool of at most `max_size` connections; jsonb comes and goes as Python values.

    Postgres ends a transaction in which nothing is asked for `most_idle_seconds`: a frozen process that holds a
    row lock must not block its rescuers for ever. Who waits for a lock longer than `most_locked_seconds` gives up
    as `Locked`; 0 waits as long as the statement may take.

    Raises:
        DatabaseUnavailable: nobody answers at `url`.
        Broken: the server answers but refuses us (password, database name).
    """
    try:
        return await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=max_size,
            init=_prepare_connection,
            timeout=10,
            command_timeout=_MOST_SECONDS_A_STATEMENT,
            server_settings={
                "application_name": application_name,
                "idle_in_transaction_session_timeout": f"{max(1, round(most_idle_seconds * 1000))}ms",  # 0 is none
                "lock_timeout": f"{round(most_locked_seconds * 1000)}ms",
                # a lock must not outlive one whose machine is gone, without a word over the wire
                "tcp_keepalives_idle": "10",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
                "plan_cache_mode": "force_custom_plan",  # partition pruning needs the shard's value
            },
        )
    except ValueError:  # its text quotes what it could not read, which may be a part of the password
        raise Broken("DATABASE_URL cannot be read; percent-encode special characters in the password") from None
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as exc:
        raise Broken(f"DATABASE_URL: {exc}") from exc
    except _PASSING as exc:
        raise DatabaseUnavailable from exc


async def close_pool(pool: Pool) -> None:
    """Say goodbye to Postgres, or just go, if it takes too long: what it would answer is of no use any more."""
    with anyio.move_on_after(_GOODBYE_SECONDS), suppress(*_PASSING):
        await pool.close()
    pool.terminate()


async def _acquire(pool: Pool) -> "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]":
    try:
        return await pool.acquire(timeout=_ACQUIRE_SECONDS)
    except TimeoutError as exc:
        raise NoConnection from exc


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """A connection outside a transaction: each statement commits by itself.

    Raises:
        NoConnection: there is none to be had.
        Locked: somebody else holds a lock for too long.
        DatabaseUnavailable: the connection was lost, or Postgres asks to try again (deadlock, shutdown).
    """
    try:
        conn = await _acquire(pool)
        try:
            yield conn
        except _USED_UP:
            conn.terminate()  # the pool must not hand it out again
            raise
        finally:
            await pool.release(conn)
    except asyncpg.UndefinedTableError as exc:
        raise NotMigrated from exc
    except asyncpg.LockNotAvailableError as exc:
        raise Locked from exc
    except _PASSING as exc:
        raise DatabaseUnavailable(_text_of(exc)) from exc


def _text_of(error: Exception) -> str:
    """What a client may read of it: the system's errors quote addresses."""
    name = type(error).__name__
    return f"Postgres: {name}" if isinstance(error, OSError) else f"Postgres: {name}: {error}"


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """One READ COMMITTED transaction: commits when the block ends, rolls back on any error.

    Raises:
        DatabaseUnavailable: as `connection`; whether a commit that was cut off took effect is then unknown,
            which is why every write of ours can be repeated.
    """
    async with connection(pool) as conn, conn.transaction():
        yield conn
