"""A shard is made at run time, beside everybody who reads and writes the others."""

import asyncio

from app.db import Pool, connection
from app.ingest.outcomes import Completed
from app.vector.shards import ensure_shard
from tests.ingest.conftest import Workbench


async def test_a_new_shard_waits_for_no_transaction_and_stops_none(bench: Workbench, pool: Pool) -> None:
    """As a big store is being deleted, say."""
    store = await bench.store()
    assert isinstance(await bench.processor.process(await bench.attach(await bench.file(), [store])), Completed)
    async with connection(pool) as writer, writer.transaction(), asyncio.timeout(10):
        await writer.execute("DELETE FROM chunks")
        async with connection(pool) as maker, maker.transaction():
            await ensure_shard(maker, 512)
            await bench.sql("SELECT count(*) FROM chunks")
            another = await bench.attach(await bench.file(), [await bench.store()])
            assert isinstance(await bench.processor.process(another), Completed)
