"""The doctor is the other tests' oracle, so each thing it should find is broken here on purpose."""

import pytest

from app.db import transaction
from app.doctor import examine
from app.doorbell import job_id_of
from app.ingest.outcomes import Completed
from app.records.ingestions import Hint
from app.resources import open_resources
from tests.ingest.conftest import Workbench

BREAKAGES = {
    "chunk missing": ("DELETE FROM chunks WHERE ordinal = 0", "exactly its chunks"),
    "chunk doubled": (
        "INSERT INTO chunks (shard, vector_store_id, file_id, ordinal, content, embedding)"
        " SELECT shard, vector_store_id, file_id, ordinal + 1000, content, embedding FROM chunks LIMIT 1",
        "exactly its chunks",
    ),
    "ordinal moved": ("UPDATE chunks SET ordinal = 77 WHERE ordinal = 0", "exactly its chunks"),
    "count wrong": ("UPDATE vector_store_files SET chunk_count = chunk_count + 1", "exactly its chunks"),
    "usage wrong": ("UPDATE vector_store_files SET usage_bytes = usage_bytes + 1", "usage_bytes"),
    "chunks of nobody": ("DELETE FROM vector_store_files", "every chunk belongs"),
    "chunks of an unfinished file": (
        "UPDATE ingestions SET state = 'queued', finished_at = NULL",
        "every chunk belongs",
    ),
    "lease past due": (
        "UPDATE ingestions SET state = 'running', finished_at = NULL, lease_until = now() - interval '1 hour'",
        "no lease is past due",
    ),
    "dimensions": ("UPDATE vector_stores SET dimensions = 3", "shard holds its dimensions"),
    "work for no store": (
        "WITH gone AS (DELETE FROM vector_store_files), none AS (DELETE FROM chunks)"
        " UPDATE ingestions SET state = 'queued', finished_at = NULL",
        "unfinished work",
    ),
    "failed for no reason": (
        "UPDATE ingestions SET state = 'failed', error_code = '', error_message = NULL",
        "a failure has a reason",
    ),
    "completed without a chunk": (
        "WITH none AS (DELETE FROM chunks),"
        " zero AS (UPDATE vector_store_files SET chunk_count = 0, usage_bytes = 0)"
        " UPDATE ingestions SET chunks_total = 0",
        "at least one chunk",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
async def test_the_doctor_finds(bench: Workbench, breakage: str) -> None:
    statement, promise = BREAKAGES[breakage]
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    assert isinstance(await bench.processor.process(ingestion), Completed)
    assert await bench.findings() == []
    async with transaction(bench.resources.pool) as conn:
        await conn.execute(statement)
    findings = await bench.findings()
    assert any(promise in finding.promise for finding in findings), findings


async def test_the_doctor_finds_a_settled_row_whose_job_still_waits(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    await bench.resources.doorbell.enqueue_file_processing_jobs([Hint(ingestion, bench.owner.user_id, None, 1)])
    assert isinstance(await bench.processor.process(ingestion), Completed)
    await bench.sql("UPDATE ingestions SET finished_at = now() - interval '1 minute'")
    (finding,) = await bench.findings()
    assert finding.promise == "a row and its RQ job agree"
    assert job_id_of(ingestion, 1) in finding.where


async def test_the_doctor_finds_due_work_of_which_the_queue_knows_nothing(bench: Workbench) -> None:
    await bench.attach(await bench.file(), [await bench.store()])
    await bench.sql("UPDATE ingestions SET hinted_at = now() - interval '1 minute'")
    (finding,) = await bench.findings()
    assert "is gone" in finding.where


async def test_the_doctor_names_a_redis_that_does_not_answer(bench: Workbench) -> None:
    await bench.attach(await bench.file(), [await bench.store()])
    await bench.sql("UPDATE ingestions SET hinted_at = now() - interval '1 minute'")
    nowhere = bench.resources.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with open_resources(nowhere, role="test") as without:
        (finding,) = await examine(without)
    assert finding.promise == "Redis answers"
    assert "127.0.0.1:1" in finding.where
