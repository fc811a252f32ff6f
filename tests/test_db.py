"""A Postgres that comes late."""

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from app.db import (
    DatabaseUnavailable,
    NoConnection,
    close_pool,
    connection,
    open_pool,
    open_pool_patiently,
    transaction,
)
from app.embedded import EmbeddedPostgres
from tests.support.proxy import Proxy


async def test_a_postgres_that_comes_late_is_waited_for(postgres: EmbeddedPostgres) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "postgres"
        with Proxy(str(place)) as wire, capture_logs() as logs:
            url = f"postgresql://postgres@127.0.0.1:{wire.port}/postgres"
            opening = asyncio.ensure_future(
                open_pool_patiently(url, max_size=1, application_name="test", patience_seconds=30)
            )
            async with asyncio.timeout(20):
                while not logs:
                    await asyncio.sleep(0.01)
            assert logs[0]["event"] == "waiting for Postgres"
            place.symlink_to(Path(parse_qs(urlsplit(postgres.url).query)["host"][0]) / ".s.PGSQL.5432")
            pool = await opening
            assert await pool.fetchval("SELECT 1") == 1
            await pool.close()


async def test_patience_has_an_end() -> None:
    with Proxy("/nowhere") as wire, pytest.raises(DatabaseUnavailable):
        await open_pool_patiently(
            f"postgresql://postgres@127.0.0.1:{wire.port}/postgres",
            max_size=1,
            application_name="test",
            patience_seconds=0,
        )


async def test_a_pool_that_is_used_up_is_told_from_a_postgres_that_fails(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db._ACQUIRE_SECONDS", 0.1)
    pool = await open_pool(database_url, max_size=1, application_name="test")
    async with connection(pool):
        with pytest.raises(NoConnection):
            await connection(pool).__aenter__()
    with pytest.raises(DatabaseUnavailable) as failed:
        async with connection(pool) as conn:
            await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert not isinstance(failed.value, NoConnection)
    async with connection(pool) as conn:
        assert await conn.fetchval("SELECT 1") == 1
    await pool.close()


@pytest.mark.parametrize("is_in_use", [True, False])
async def test_a_postgres_that_does_not_answer_keeps_nobody_from_leaving(
    database_url: str, *, is_in_use: bool
) -> None:
    pool = await open_pool(database_url, max_size=2, application_name="test")
    backend = await pool.fetchval("SELECT pg_backend_pid()")
    waiting = asyncio.ensure_future(pool.fetchval("SELECT pg_sleep(60)")) if is_in_use else None
    await asyncio.sleep(0)
    os.kill(backend, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            await close_pool(pool)
            if waiting is not None:
                await asyncio.wait({waiting})
    finally:
        os.kill(backend, signal.SIGCONT)
    if waiting is not None:
        assert waiting.exception() is not None


async def test_a_table_that_changes_under_a_prepared_statement_is_a_passing_fault(database_url: str) -> None:
    pool = await open_pool(database_url, max_size=1, application_name="test")
    statement = "SELECT * FROM groups"
    async with transaction(pool) as conn:
        await conn.fetch(statement)
    other = await asyncpg.connect(database_url)
    await other.execute("ALTER TABLE groups ADD COLUMN new_thing int")
    await other.close()
    with pytest.raises(DatabaseUnavailable):
        async with transaction(pool) as conn:
            await conn.fetch(statement)
    async with transaction(pool) as conn:
        await conn.fetch(statement)
    await pool.close()
