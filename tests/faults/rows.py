"""What the harness asks Postgres about workers and attempts, past the wire that faults are at."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import asyncpg

from app.ids import from_wire, to_wire

MEET_SECONDS = 3
WRITE_SECONDS = 5


@asynccontextmanager
async def connected(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection for as long as the block lasts."""
    conn = await asyncpg.connect(database_url)
    try:
        yield conn
    finally:
        await conn.close()


async def repeated(database_url: str, ingestions: list[str]) -> dict[str, tuple[int, int]]:
    """Which of these took more than one attempt: how many, and how many of them were lost with their lease."""
    async with connected(database_url) as conn:
        rows = await conn.fetch(
            """
            SELECT id, attempts, crashes FROM ingestions
            WHERE id = ANY($1) AND (attempts > 1 OR crashes > 0) AND state = 'completed'
            """,
            [from_wire("ing", each) for each in ingestions],
        )
    return {to_wire("ing", each["id"]): (each["attempts"], each["crashes"]) for each in rows}


async def has_failed(database_url: str, code: str, seconds: float) -> bool:
    """Whether any file has failed with this code in so many seconds."""
    async with connected(database_url) as conn:
        found: bool = await conn.fetchval(
            "SELECT EXISTS (SELECT FROM ingestions WHERE error_code = $1 AND finished_at > now() - $2::interval)",
            code,
            timedelta(seconds=seconds),
        )
    return found


async def until_busy(database_url: str, names: list[str]) -> str | None:
    """One of these workers that holds a lease; None if none does for a while."""
    with suppress(OSError, asyncpg.PostgresError):
        async with connected(database_url) as conn:
            until = time.monotonic() + MEET_SECONDS
            while time.monotonic() < until:
                busy: str | None = await conn.fetchval(
                    "SELECT leased_by FROM ingestions WHERE state = 'running' AND leased_by = ANY($1) LIMIT 1",
                    names,
                )
                if busy is not None:
                    return busy
                await asyncio.sleep(0.005)
    return None


async def held_by(database_url: str, worker: str) -> list[dict[str, Any]]:
    """The ingestions that this worker has leases of, with what the API shows of them that is needed here."""
    async with connected(database_url) as conn:
        return await _running(conn, "leased_by = $1", worker)


async def until_written(database_url: str) -> list[dict[str, Any]]:
    """Likewise those that are being written at this moment; none if there are none for a while."""
    async with connected(database_url) as conn:
        until = time.monotonic() + WRITE_SECONDS
        while time.monotonic() < until:
            if found := await _running(conn, "stage = $1", "writing"):
                return found
            await asyncio.sleep(0.005)
    return []


async def files_named(database_url: str, filename: str) -> int:
    """How many files there are of this name."""
    async with connected(database_url) as conn:
        count: int = await conn.fetchval("SELECT count(*) FROM files WHERE filename = $1", filename)
        return count


async def _running(conn: asyncpg.Connection, condition: str, value: str) -> list[dict[str, Any]]:
    rows = await conn.fetch(
        f"""
        SELECT id, file_id,
               ARRAY(SELECT vector_store_id FROM vector_store_files v WHERE v.ingestion_id = i.id) AS store_ids
        FROM ingestions i WHERE state = 'running' AND {condition}
        """,
        value,
    )
    return [
        {
            "id": to_wire("ing", row["id"]),
            "file_id": to_wire("file", row["file_id"]),
            "vector_store_ids": [to_wire("vs", each) for each in row["store_ids"]],
        }
        for row in rows
    ]
