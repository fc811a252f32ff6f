import asyncio
import os
import sys

import asyncpg
import pytest
from alembic import command
from alembic.util import CommandError

from app.db import Pool, transaction
from app.errors import NotFound
from app.ids import new_id
from app.migrate import alembic_config
from app.records.vector_stores import get_store
from app.vector.shards import ensure_shard


def test_the_tables_in_code_are_the_tables_that_the_migrations_make(database_url: str) -> None:
    command.check(alembic_config(database_url))


def test_downgrade_to_base_leaves_no_table_and_upgrade_works_again(database_url: str) -> None:
    config = alembic_config(database_url)
    command.downgrade(config, "base")
    with pytest.raises(CommandError, match="not up to date"):
        command.check(config)
    command.upgrade(config, "head")
    command.check(config)


async def test_two_upgrades_at_the_same_time_are_one_after_the_other(database_url: str, pool: Pool) -> None:
    await asyncio.to_thread(command.downgrade, alembic_config(database_url), "base")
    upgrades = []
    async with transaction(pool) as conn:
        await conn.execute("LOCK TABLE alembic_version IN SHARE MODE")  # where the first one waits in its midst
        for number in (1, 2):
            upgrades.append(await start_upgrade(database_url))
            async with asyncio.timeout(30):
                while await pool.fetchval(AT_A_DOOR) < number:
                    await asyncio.sleep(0.02)
    for upgrade in upgrades:
        _, errors = await upgrade.communicate()
        assert upgrade.returncode == 0, errors.decode()


AT_A_DOOR = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
      AND (wait_event_type = 'Lock' OR query LIKE '%pg_try_advisory_lock%' AND pid NOT IN (
          SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted) AND pid <> pg_backend_pid())
"""


async def start_upgrade(database_url: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "alembic", "upgrade", "head",
        env={**os.environ, "DATABASE_URL": database_url}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_an_index_that_an_interrupted_upgrade_left_is_made_anew(database_url: str, pool: Pool) -> None:
    config = alembic_config(database_url)
    await asyncio.to_thread(command.downgrade, config, "0003")
    for name, table in (
        ("ix_files_expiring", "files"),
        ("ix_ingestions_overtaken", "ingestions"),
        ("ix_ingestions_unheard", "ingestions"),
        ("ix_ingestions_turns", "ingestions"),
    ):
        await pool.execute(f"CREATE INDEX {name} ON {table} (id)")
        await pool.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = $1::text::regclass", name)
    await asyncio.to_thread(command.upgrade, config, "head")
    assert await pool.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
    await asyncio.to_thread(command.check, config)


async def test_the_shards_made_at_run_time_are_none_of_alembics_business(database_url: str, pool: Pool) -> None:
    async with transaction(pool) as conn:
        await ensure_shard(conn, 256)
    await asyncio.to_thread(command.check, alembic_config(database_url))


async def test_a_store_can_be_read_in_the_moment_in_which_its_table_gets_a_column(
    database_url: str, pool: Pool
) -> None:
    conn = await asyncpg.connect(database_url)
    for statement in ("SELECT 1", "ALTER TABLE vector_stores ADD COLUMN new_thing int"):
        await conn.execute(statement)
        with pytest.raises(NotFound):
            async with transaction(pool) as reader:
                await get_store(reader, new_id())
    await conn.close()


async def test_a_chunk_of_other_dimensions_does_not_enter_a_shard(pool: Pool) -> None:
    async with transaction(pool) as conn:
        shard = await ensure_shard(conn, 3)
    with pytest.raises(asyncpg.CheckViolationError):
        async with transaction(pool) as conn:
            await conn.execute(
                "INSERT INTO chunks (shard, vector_store_id, file_id, ordinal, content, embedding)"
                " VALUES ($1, gen_random_uuid(), gen_random_uuid(), 0, 'x', '[1,2]')",
                shard,
            )
