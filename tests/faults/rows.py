"""What the harness asks Postgres about workers and attempts."""

import asyncio
import time
from contextlib import suppress

import asyncpg

from app.ids import from_wire, to_wire

MEET_SECONDS = 3


async def repeated(database_url: str, ingestions: list[str]) -> dict[str, str]:
    """Which of these took more than one attempt, and what to say of them."""
    conn = await asyncpg.connect(database_url)
    try:
        rows = await conn.fetch(
            """
            SELECT id, attempts, crashes FROM ingestions
            WHERE id = ANY($1) AND (attempts > 1 OR crashes > 0) AND state = 'completed'
            """,
            [from_wire("ing", each) for each in ingestions],
        )
    finally:
        await conn.close()
    return {
        to_wire("ing", each["id"]): f"took {each['attempts']} attempts, {each['crashes']} lost" for each in rows
    }


async def until_busy(database_url: str, names: list[str]) -> str | None:
    """One of these workers that holds a lease; None if none does for a while."""
    with suppress(OSError, asyncpg.PostgresError):
        conn = await asyncpg.connect(database_url)
        try:
            until = time.monotonic() + MEET_SECONDS
            while time.monotonic() < until:
                busy: str | None = await conn.fetchval(
                    "SELECT leased_by FROM ingestions WHERE state = 'running' AND leased_by = ANY($1) LIMIT 1",
                    names,
                )
                if busy is not None:
                    return busy
                await asyncio.sleep(0.005)
        finally:
            await conn.close()
    return None
