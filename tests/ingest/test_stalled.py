"""A writer that is frozen in the middle of its COPY, and one that is only slow."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import anyio
import pytest

from app.db import DatabaseUnavailable, connection, open_pool, transaction
from app.ingest.maintenance import maintain
from app.ingest.stalled import StalledWrites
from app.records.ingestions import claim, lock_claim
from app.records.store_files import lock_targets
from app.vector.codec import COLUMNS
from tests.ingest.conftest import Workbench

COPIES = "SELECT count(*) FROM pg_stat_progress_copy WHERE datname = current_database()"
HEADER = b"PGCOPY\n\xff\r\n\x00" + b"\0" * 8
FIRST_HALF_OF_A_ROW = struct.pack("!hi", len(COLUMNS), 16) + b"x" * 8


@dataclass(frozen=True, slots=True)
class Writer:
    """One whose COPY gets a piece for each that is put, and stands still between them."""

    ingestion: UUID
    copying: "asyncio.Task[None]"
    pieces: "asyncio.Queue[bytes]"

    async def wake_up_to_its_end(self) -> None:
        self.pieces.put_nowait(b"too late")
        self.pieces.put_nowait(b"")
        async with asyncio.timeout(10):
            with pytest.raises(DatabaseUnavailable):
                await self.copying


@asynccontextmanager
async def writer_in_a_copy(bench: Workbench) -> AsyncIterator[Writer]:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with connection(bench.resources.pool) as conn:
        held = await claim(conn, ingestion, lease_seconds=0.1, worker="frozen")
    assert held is not None
    pool = await open_pool(bench.resources.settings.database_url, max_size=1, application_name="sluice-frozen")
    pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def source() -> AsyncIterator[bytes]:
        while piece := await pieces.get():
            yield piece

    async def write() -> None:
        async with transaction(pool) as conn:
            assert await lock_claim(conn, held)
            assert await lock_targets(conn, ingestion)
            await conn.copy_to_table("chunks", source=source(), columns=COLUMNS, format="binary")

    copying = asyncio.create_task(write())
    pieces.put_nowait(HEADER)
    await until_received(bench, len(HEADER))
    try:
        yield Writer(ingestion, copying, pieces)
    finally:
        pool.terminate()
        copying.cancel()
        await asyncio.wait({copying})


async def until_received(bench: Workbench, size_bytes: int) -> None:
    progress = "SELECT max(bytes_processed) FROM pg_stat_progress_copy WHERE datname = current_database()"
    async with asyncio.timeout(10):
        while await bench.sql(progress) != size_bytes:
            await asyncio.sleep(0.01)


async def test_a_copy_that_gets_no_byte_between_two_looks_is_ended(bench: Workbench) -> None:
    writes = StalledWrites(patience_seconds=0.0)
    patient = StalledWrites(patience_seconds=60.0)
    async with writer_in_a_copy(bench) as writer:
        for _ in range(3):
            await patient.end(bench.resources.pool)
        assert not writer.copying.done()
        await writes.end(bench.resources.pool)
        assert await bench.sql(COPIES) == 1  # one look tells nothing
        await writes.end(bench.resources.pool)
        async with asyncio.timeout(10):
            while await bench.sql(COPIES):
                await asyncio.sleep(0.01)
        await writer.wake_up_to_its_end()


async def test_a_copy_that_is_only_slow_goes_on(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    writes = StalledWrites(patience_seconds=15.0)
    async with writer_in_a_copy(bench) as writer:
        received = len(HEADER)
        for number in range(len(FIRST_HALF_OF_A_ROW)):
            await writes.end(bench.resources.pool)
            now += 14.0
            writer.pieces.put_nowait(FIRST_HALF_OF_A_ROW[number : number + 1])
            received += 1
            await until_received(bench, received)
        assert not writer.copying.done()


async def test_what_a_frozen_writer_held_is_taken_back_within_a_lease(bench: Workbench) -> None:
    quick = bench.with_settings(lease_seconds=1.0, sweep_interval_seconds=0.1)
    stop = anyio.Event()
    async with writer_in_a_copy(bench) as writer, anyio.create_task_group() as group:
        group.start_soon(lambda: maintain(quick.processor, concurrency=1, stop=stop))
        async with asyncio.timeout(20):
            while (await bench.row(writer.ingestion)).crashes == 0:
                await asyncio.sleep(0.02)
        stop.set()
        await writer.wake_up_to_its_end()
