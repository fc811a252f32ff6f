"""Real servers for every test: one Postgres and one Redis a session, a fresh database a test."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from app.access.people import create_user
from app.access.tokens import Principal, create_token
from app.db import Pool, open_pool, transaction
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.migrate import upgrade
from app.settings import Settings, load_settings

TEMPLATE = "template_sluice"
KEK = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """Not pytest's tmp_path: its depth breaks Unix sockets, and Postgres wants the folder for itself."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(servers_folder: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(servers_folder, durable=False, database=TEMPLATE) as server:
        upgrade(server.url)
        yield server


@pytest.fixture(scope="session")
def redis_server(servers_folder: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(servers_folder, durable=False) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, to be stopped and started at will."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-redis-"))
    with EmbeddedRedis(folder, durable=False) as server:
        yield server
    shutil.rmtree(folder, ignore_errors=True)


async def _run_sql(url: str, *statements: str) -> None:
    conn = await asyncpg.connect(url)
    try:
        for statement in statements:
            await conn.execute(statement)
    finally:
        await conn.close()


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A migrated, empty database."""
    name = f"test_{uuid4().hex[:12]}"
    asyncio.run(_run_sql(postgres.url_of("postgres"), f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}"'))
    yield postgres.url_of(name)
    asyncio.run(_run_sql(postgres.url_of("postgres"), f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> Iterator[str]:
    """An empty Redis."""
    yield redis_server.url
    redis_server.flush()


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings for this test's database, Redis and blob folder; retries and sweeps are quick."""
    return load_settings(
        database_url=database_url,
        redis_url=redis_url,
        storage_url=f"file://{tmp_path / 'blobs'}",
        sluice_key_encryption_key=KEK,
        lease_seconds=3,
        sweep_interval_seconds=0.2,
        job_retry_delay=0.05,
        database_pool_size=6,
    )


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database_url, max_size=6, application_name="test")
    yield pool
    await pool.close()


@pytest.fixture
def make_principal(pool: Pool) -> Callable[[str], Awaitable[tuple[Principal, str]]]:
    """Makes a user with an API key: (who, the key's text)."""

    async def make(name: str) -> tuple[Principal, str]:
        async with transaction(pool) as conn:
            user = await create_user(conn, name)
            token = await create_token(conn, user_id=user.id, name="test")
        return Principal(user.id, user.name, token.id), token.text

    return make
