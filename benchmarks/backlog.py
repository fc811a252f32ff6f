"""A million queued ingestions: what Redis holds of them, how fast it is told anew, and what waits meanwhile.

    python -m benchmarks.backlog [--files 1000000]    # at least 100,000

The real API (whose sweep rings) over the embedded servers, and no worker. The rows are written by SQL, 2,000 to a
user. Then: seconds until the queue knows the next files of all users, the same after FLUSHALL, Redis' memory,
claims a second by id (as hints ask for) with and without marking the user's next file, and straight from Postgres
(as without Redis), and how long a status waits at the same time.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import redis
from rich.console import Console
from rich.table import Table

from app.cli.service import ServicePlan, running_service
from app.db import Pool, connection, open_pool, transaction
from app.ids import to_wire
from app.records.hints import take_unhinted
from app.records.ingestions import claim
from app.records.turns import NOBODY, claim_due, turn_after
from app.settings import QUEUE_NAME
from tests.support.environment import clean_environment
from tests.support.ports import free_port

BATCH = 2000
CLAIM_SECONDS = 10.0
AT_ONCE = 16
LEASE_SECONDS = 3600.0
HINTS_A_USER = 16  # as with the default WORKER_CONCURRENCY

_ROWS = """
WITH owner AS (
    INSERT INTO users (id, name) VALUES (gen_random_uuid(), 'user ' || $2) RETURNING id
),
store AS (SELECT id FROM vector_stores LIMIT 1),
batch AS (
    INSERT INTO batches (id, owner_id, vector_store_id)
    SELECT gen_random_uuid(), owner.id, store.id FROM owner, store RETURNING id
),
file AS (
    INSERT INTO files (id, owner_id, filename, purpose, media_type, size_bytes, sha256)
    SELECT gen_random_uuid(), owner.id, n || '.txt', 'assistants', 'text/plain', 1000, '\\x00'
    FROM owner, generate_series(1, $1) AS n RETURNING id
),
ingestion AS (
    INSERT INTO ingestions (id, user_id, file_id, batch_id, max_chunk_size_tokens, chunk_overlap_tokens)
    SELECT gen_random_uuid(), owner.id, file.id, batch.id, 800, 400 FROM owner, batch, file RETURNING id, file_id
)
INSERT INTO vector_store_files (vector_store_id, file_id, ingestion_id)
SELECT store.id, ingestion.file_id, ingestion.id FROM store, ingestion
"""

_IN_LINE = f"""
SELECT coalesce(sum(least(files, {HINTS_A_USER})), 0)::int FROM (
    SELECT count(*) AS files FROM ingestions WHERE state = 'queued' GROUP BY user_id
) users
"""
_ASKER_IS_FIRST = """
UPDATE ingestions SET user_id = (SELECT owner_id FROM vector_stores)
WHERE user_id = (SELECT id FROM users WHERE name = 'user 0')
"""


async def until_told(queue: redis.Redis, url: str) -> float:
    """Seconds until the queue holds the next of all who wait (the API takes some while Redis does not answer)."""
    conn = await asyncpg.connect(url)
    started = time.monotonic()
    while queue.llen(f"rq:queue:{QUEUE_NAME}") < await conn.fetchval(_IN_LINE):
        await asyncio.sleep(1)
    await conn.close()
    return time.monotonic() - started


@contextmanager
def asking(http: httpx.Client, paths: list[str], milliseconds: list[float]) -> Iterator[None]:
    """Ask for statuses one after another while the block runs."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            started = time.perf_counter()
            http.get(random.choice(paths)).raise_for_status()
            milliseconds.append((time.perf_counter() - started) * 1000)
            time.sleep(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


async def a_second(pool: Pool, take: Callable[[Pool], Awaitable[int]]) -> float:
    """Claims a second, `AT_ONCE` askers."""
    until = time.monotonic() + CLAIM_SECONDS
    count = 0

    async def go_on() -> None:
        nonlocal count
        while time.monotonic() < until:
            taken = await take(pool)
            count += taken  # not before the await: others count meanwhile

    await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))
    return count / CLAIM_SECONDS


async def claims(url: str, ids: list[UUID]) -> tuple[float, float, float]:
    pool = await open_pool(url, max_size=AT_ONCE, application_name="benchmark")
    after = NOBODY

    async def alone(pool: Pool) -> int:
        async with connection(pool) as conn:
            held = await claim(conn, ids.pop(), lease_seconds=LEASE_SECONDS, worker="benchmark")
        return int(held is not None)  # some are done: the API took them while FLUSHALL kept Redis from answering

    async def by_hint(pool: Pool) -> int:
        async with connection(pool) as conn:
            held = await claim(conn, ids.pop(), lease_seconds=LEASE_SECONDS, worker="benchmark")
        if held is not None:
            async with connection(pool) as conn:
                await take_unhinted(conn, [held.user_id], most_a_user=HINTS_A_USER)
        return 1

    async def without_redis(pool: Pool) -> int:
        nonlocal after
        async with transaction(pool) as conn:
            taken = await claim_due(
                conn, limit=AT_ONCE, lease_seconds=LEASE_SECONDS, worker="benchmark", after=after
            )
        after = turn_after(taken, after)
        return len(taken)

    try:
        return await a_second(pool, alone), await a_second(pool, by_hint), await a_second(pool, without_redis)
    finally:
        await pool.close()


async def write_rows(url: str, files: int) -> None:
    conn = await asyncpg.connect(url)
    for number in range(files // BATCH):
        await conn.execute(_ROWS, BATCH, str(number))
    await conn.execute(_ASKER_IS_FIRST)
    await conn.execute("VACUUM ANALYZE")
    await conn.close()


async def some_ids(url: str) -> tuple[list[UUID], list[UUID], list[UUID]]:
    conn = await asyncpg.connect(url)
    own = await conn.fetch(
        "SELECT id FROM ingestions WHERE user_id = (SELECT owner_id FROM vector_stores) LIMIT 1000"
    )
    ingestions = await conn.fetch("SELECT id FROM ingestions ORDER BY id LIMIT 100000")
    batches = await conn.fetch("SELECT id FROM batches")
    await conn.close()
    return [row["id"] for row in own], [row["id"] for row in ingestions], [row["id"] for row in batches]


def show(rows: dict[str, str], console: Console) -> None:
    table = Table("", "figure")
    for name, figure in rows.items():
        table.add_row(name, figure)
    console.print(table)


def waits(milliseconds: list[float]) -> str:
    quantiles = statistics.quantiles(milliseconds, n=100)
    return f"p50 {quantiles[49]:.1f}, p99 {quantiles[98]:.1f} ms ({len(milliseconds)} asked)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    files = parser.parse_args().files // BATCH * BATCH
    console = Console(width=100)
    rows: dict[str, str] = {}
    environment = clean_environment()
    with tempfile.TemporaryDirectory() as folder:
        plan = ServicePlan(Path(folder), port=free_port(), workers=0, environment=environment)
        with running_service(plan, print) as service:
            url, headers = service.environment["DATABASE_URL"], {"Authorization": f"Bearer {service.api_key}"}
            queue = redis.Redis.from_url(service.environment["REDIS_URL"], socket_timeout=120)
            with httpx.Client(base_url=service.url, headers=headers, timeout=60) as http:
                store = http.post("/v1/vector_stores", json={}).raise_for_status().json()["id"]
                asyncio.run(write_rows(url, files))
                rows["told of all users at first, s"] = f"{asyncio.run(until_told(queue, url)):.0f}"
                rows["Redis, MB for all of them"] = f"{queue.info('memory')['used_memory'] / 1e6:.1f}"
                own, ids, batches = asyncio.run(some_ids(url))
                ones = [f"/v1/ingestions/{to_wire('ing', each)}" for each in own]
                counts = [f"/v1/vector_stores/{store}/file_batches/{to_wire('vsfb', each)}" for each in batches]
                single: list[float] = []
                batch: list[float] = []
                with asking(http, ones, single):
                    queue.flushall()
                    rows["told of all users again after FLUSHALL, s"] = f"{asyncio.run(until_told(queue, url)):.0f}"
                with asking(http, counts, batch):
                    alone, by_hint, without = asyncio.run(claims(url, ids))
                rows["claims a second, by hint"] = f"{by_hint:.0f} ({alone:.0f} without marking the next file)"
                rows["claims a second, without Redis"] = f"{without:.0f}"
                rows["status of one, during the refill"] = waits(single)
                rows["counts of a batch of 2,000, during the claims"] = waits(batch)
            queue.close()
    show(rows, console)


if __name__ == "__main__":
    main()
