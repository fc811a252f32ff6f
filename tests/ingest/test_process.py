"""One file's way through the real pipeline."""

import asyncio
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from app.blobs import BlobStore
from app.ingest.outcomes import Completed, Failed, RetryLater
from app.ingest.process import Processor
from tests.ingest.conftest import TEXT, Workbench
from tests.support.fake_openai import FakeOpenAI, Held


async def test_a_file_in_three_stores_is_whole_in_each(bench: Workbench) -> None:
    stores = [await bench.store() for _ in range(3)]
    ingestion = await bench.attach(await bench.file(), stores)
    outcome = await bench.processor.process(ingestion)
    assert isinstance(outcome, Completed)
    assert outcome.stores == 3
    assert [await bench.chunks(store) for store in stores] == [outcome.chunks] * 3
    row = await bench.row(ingestion)
    assert (row.state, row.stage, row.chunks_total, row.attempts) == ("completed", "done", outcome.chunks, 1)
    assert await bench.findings() == []


async def test_when_the_third_stores_insert_fails_the_first_two_are_untouched(bench: Workbench) -> None:
    stores = [await bench.store() for _ in range(3)]
    old = await bench.file("What was here before. " * 50)
    assert isinstance(await bench.processor.process(await bench.attach(old, stores[:2])), Completed)
    before = [await bench.chunks(store) for store in stores]
    table = await bench.sql("SELECT 'chunks_shard_' || id FROM shards")
    await bench.sql(f"ALTER TABLE {table} ADD CONSTRAINT no_third CHECK (vector_store_id <> '{stores[2]}')")
    few = bench.with_settings(job_max_retries=0)
    ingestion = await few.attach(await few.file(), stores)
    outcome = await few.processor.process(ingestion)
    assert isinstance(outcome, Failed)
    assert [await bench.chunks(store) for store in stores] == before
    row = await bench.row(ingestion)
    assert (row.state, row.error_code) == ("failed", "internal_error")
    assert "CheckViolationError" in (row.error_message or "")
    assert await bench.findings() == []
    await bench.sql(f"ALTER TABLE {table} DROP CONSTRAINT no_third")
    again = await bench.attach(row.file_id, stores)
    assert isinstance(await bench.processor.process(again), Completed)
    assert await bench.findings() == []


@pytest.mark.parametrize(
    ("content", "filename", "code"),
    [
        (b"\x00\x01\x02\x03" * 200, "a.bin", "unsupported_file"),
        (b"%PDF-1.4\nnothing", "a.pdf", "unreadable_file"),
        (b"   \n\n  ", "a.txt", "empty_text"),
    ],
)
async def test_a_bad_file_fails_at_once_with_its_reason(
    bench: Workbench, content: bytes, filename: str, code: str
) -> None:
    ingestion = await bench.attach(await bench.file(content, filename), [await bench.store()])
    assert isinstance(await bench.processor.process(ingestion), Failed)
    row = await bench.row(ingestion)
    assert (row.state, row.error_code, row.attempts) == ("failed", code, 1)
    assert row.error_message
    assert await bench.findings() == []


async def test_a_blob_that_is_gone_fails_with_its_reason(bench: Workbench) -> None:
    file_id = await bench.file()
    ingestion = await bench.attach(file_id, [await bench.store()])
    await bench.resources.blobs.delete(f"files/{file_id.hex}")
    await bench.processor.process(ingestion)
    assert (await bench.row(ingestion)).error_code == "blob_missing"


async def test_a_worker_without_its_volume_gives_no_file_up(bench: Workbench, tmp_path: Path) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    elsewhere = replace(bench.resources, blobs=BlobStore.open(f"file://{tmp_path / 'empty'}"))
    outcome = await Processor(elsewhere, name="astray").process(ingestion)
    assert isinstance(outcome, RetryLater)
    row = await bench.row(ingestion)
    assert (row.state, row.attempts) == ("queued", 0)
    assert "volume is mounted" in (row.error_message or "")
    await bench.sql("UPDATE ingestions SET next_run_at = now()")
    assert isinstance(await bench.processor.process(ingestion), Completed)


async def test_text_that_postgres_refuses_is_cleaned(bench: Workbench) -> None:
    store = await bench.store()
    text = TEXT + " before\x0b\x0cafter \ud800 end"
    ingestion = await bench.attach(await bench.file(text.encode("utf-8", "surrogatepass")), [store])
    assert isinstance(await bench.processor.process(ingestion), Completed)


async def test_large_files_wait_for_each_other_and_small_ones_for_none(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    bench = paid.with_settings(large_file_bytes=100)  # of vectors of 16 bytes
    store = await bench.store(model="text-embedding-3-small", dimensions=8)
    first, second, small = [
        await bench.attach(await bench.file(f"{name} " * words), [store])
        for name, words in (("oak", 9000), ("elm", 9000), ("ash", 90))
    ]
    held = Held()
    provider.for_word["oak"] = held
    async with anyio.create_task_group() as group, asyncio.timeout(30):
        group.start_soon(bench.processor.process, first)
        await provider.arrived(1)
        group.start_soon(bench.processor.process, second)
        while (await bench.row(second)).stage != "embedding":
            await asyncio.sleep(0.01)
        assert isinstance(await bench.processor.process(small), Completed)
        assert not any("elm" in text for request in provider.requests for text in request.texts)
        held.release.set()
    assert {(await bench.row(each)).state for each in (first, second)} == {"completed"}
    assert await bench.findings() == []


async def test_a_large_file_that_finds_no_place_waits_at_no_attempts_cost(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    bench = paid.with_settings(large_file_bytes=0, job_timeout=4)  # so it waits for a second
    store = await bench.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await bench.attach(await bench.file(), [store])
    async with bench.resources.large_files.place(bench.owner.user_id, patience_seconds=1):
        assert isinstance(await bench.processor.process(ingestion), RetryLater)
    row = await bench.row(ingestion)
    assert (row.state, row.attempts) == ("queued", 0)
    assert "large files" in (row.error_message or "")
    assert provider.requests == []
    await bench.sql("UPDATE ingestions SET next_run_at = now()")
    assert isinstance(await bench.processor.process(ingestion), Completed)
