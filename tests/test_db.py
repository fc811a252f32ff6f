"""A Postgres that comes late."""

import asyncio
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from structlog.testing import capture_logs

from app.db import DatabaseUnavailable, open_pool_patiently
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
