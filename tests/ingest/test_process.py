"""One file's way through the real pipeline, and everything that may come between."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.access.embedding_keys import add_embedding_key, revoke_embedding_key
from app.db import connection, transaction
from app.doorbell import job_id_of
from app.embedding.embedder import Embedder
from app.ids import new_id
from app.ingest.commit import save_docs_to_multiple_collections
from app.ingest.maintenance import sweep
from app.ingest.outcomes import Completed, Failed, RetryLater, Superseded
from app.ingest.prepare import prepare
from app.ingest.process import Processor
from app.records.batches import cancel_batch, insert_batch
from app.records.ingestions import (
    NewIngestion,
    claim,
    fail,
    give_back,
    insert_ingestions,
    take_back_expired,
)
from app.records.store_files import attach, detach, detach_all, detach_everywhere
from app.records.turns import claim_due
from app.records.vector_stores import delete_store, lock_store_for_deletion
from app.resources import open_resources
from app.settings import KeyEncryptionKey
from app.vector.chunks import delete_chunks, delete_store_chunks
from tests.conftest import KEK
from tests.ingest.conftest import TEXT, Workbench
from tests.support.fake_openai import FakeOpenAI, Held, Status


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


async def test_a_file_in_three_stores_is_embedded_once(paid: Workbench, provider: FakeOpenAI) -> None:
    stores = [await paid.store(model="text-embedding-3-small", dimensions=8) for _ in range(3)]
    ingestion = await paid.attach(await paid.file(), stores)
    outcome = await paid.processor.process(ingestion)
    assert isinstance(outcome, Completed)
    texts = [text for request in provider.requests for text in request.texts]
    assert len(texts) == len(set(texts)) == outcome.chunks
    row = await paid.row(ingestion)
    assert row.billed_tokens > 0
    assert await paid.findings() == []


async def test_stores_of_different_models_each_get_their_own_vectors(paid: Workbench) -> None:
    local = await paid.store()
    small = await paid.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await paid.attach(await paid.file(), [local, small])
    assert isinstance(await paid.processor.process(ingestion), Completed)
    assert await paid.chunks(local) == await paid.chunks(small) > 0
    assert await paid.findings() == []


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


async def test_processing_twice_leaves_one_copy(bench: Workbench) -> None:
    store = await bench.store()
    ingestion = await bench.attach(await bench.file(), [store])
    outcomes = await asyncio.gather(*(bench.processor.process(ingestion) for _ in range(5)))
    assert sum(isinstance(outcome, Completed) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Superseded) for outcome in outcomes) == 4
    assert await bench.findings() == []


async def take_back(bench: Workbench) -> None:
    """What the sweep does, and then the wait that it draws for each."""
    async with transaction(bench.resources.pool) as conn:
        assert await take_back_expired(conn, most_crashes=3) == 1
    await bench.sql("UPDATE ingestions SET next_run_at = now()")


async def test_a_worker_that_wakes_up_after_its_lease_writes_nothing(bench: Workbench) -> None:
    store = await bench.store()
    ingestion = await bench.attach(await bench.file(), [store])
    pool = bench.resources.pool
    async with connection(pool) as conn:
        frozen = await claim(conn, ingestion, lease_seconds=0.001, worker="frozen")
    assert frozen is not None
    prepared = await prepare(bench.resources, frozen)
    await take_back(bench)
    async with transaction(pool) as conn:
        assert await save_docs_to_multiple_collections(conn, frozen, prepared) is None
    assert isinstance(await bench.processor.process(ingestion), Completed)
    before = await bench.chunks(store)
    async with transaction(pool) as conn:
        assert await save_docs_to_multiple_collections(conn, frozen, prepared) is None
    assert await bench.chunks(store) == before
    row = await bench.row(ingestion)
    assert (row.fence, row.attempts, row.crashes) == (2, 2, 1)
    assert await bench.findings() == []


async def test_a_file_that_takes_three_workers_down_is_poison(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    for _ in range(3):
        async with transaction(bench.resources.pool) as conn:
            assert await claim(conn, ingestion, lease_seconds=0.0, worker="w") is not None
        await take_back(bench)
    row = await bench.row(ingestion)
    assert (row.state, row.error_code) == ("failed", "poison")
    assert await bench.findings() == []


async def test_a_provider_that_limits_its_rate_is_waited_for_and_only_what_is_missing_is_asked_for_again(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await paid.attach(await paid.file(TEXT + "zebra " * 900), [store])
    provider.for_word["zebra"] = Status(429, {"retry-after": "100000"})
    async with Embedder(batch_size=1, concurrency=1, timeout_seconds=10) as one_at_a_time:
        processor = Processor(replace(paid.resources, embedder=one_at_a_time), name="test-worker")
        outcome = await processor.process(ingestion)
    assert isinstance(outcome, RetryLater)
    assert outcome.delay_seconds > 60
    row = await paid.row(ingestion)
    assert (row.state, row.attempts) == ("queued", 0)
    assert "limits its rate" in (row.error_message or "")
    paid_for = {text for request in provider.requests for text in request.texts if "zebra" not in text}
    assert paid_for
    provider.for_word.clear()
    provider.requests.clear()
    await paid.sql("UPDATE ingestions SET next_run_at = now()")
    async with open_resources(paid.resources.settings, role="another process") as fresh:
        assert isinstance(await Workbench(fresh, paid.owner).processor.process(ingestion), Completed)
    asked_again = {text for request in provider.requests for text in request.texts}
    assert not asked_again & paid_for
    assert await paid.findings() == []


async def test_answers_that_come_after_a_failure_are_kept_and_billed(paid: Workbench, provider: FakeOpenAI) -> None:
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    words = "\n\n".join(" ".join(f"w{part}x{n}" for n in range(300)) for part in range(6))
    ingestion = await paid.attach(await paid.file(words), [store])
    late = [Held() for _ in range(5)]
    provider.script(*late[:2], Status(429, {"retry-after": "100000"}), *late[2:])
    async with Embedder(batch_size=1, concurrency=6, timeout_seconds=10) as embedder:
        processor = Processor(replace(paid.resources, embedder=embedder), name="test-worker")
        running = asyncio.create_task(processor.process(ingestion))
        await provider.arrived(6)
        while provider.in_flight == 6:  # until the 429 is on its way
            await asyncio.sleep(0)
        for held in late:
            held.release.set()
        assert isinstance(await running, RetryLater)
    assert await paid.sql("SELECT count(*) FROM embedded_texts") == 5
    assert (await paid.row(ingestion)).billed_tokens == provider.billed_tokens > 0
    assert len(provider.requests) == 6  # a call that has failed sends nothing more


async def test_attempts_run_out(paid: Workbench, provider: FakeOpenAI) -> None:
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    few = paid.with_settings(job_max_retries=1, job_retry_delay=0.0)
    ingestion = await few.attach(await few.file(), [store])
    provider.for_word["lamp"] = Status(500)
    async with Embedder(batch_size=8, concurrency=1, timeout_seconds=10, patience_seconds=0.0) as impatient:
        processor = Processor(replace(few.resources, embedder=impatient), name="test-worker")
        assert isinstance(await processor.process(ingestion), RetryLater)
        await few.sql("UPDATE ingestions SET next_run_at = now()")
        assert isinstance(await processor.process(ingestion), Failed)
    row = await few.row(ingestion)
    assert (row.state, row.error_code, row.attempts) == ("failed", "attempts_exhausted", 2)


async def test_a_file_that_takes_too_long_ends_with_that_reason_and_is_no_bug_in_the_log(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    impatient = paid.with_settings(job_timeout=0.5, job_max_retries=0)
    ingestion = await paid.attach(
        await paid.file(), [await paid.store(model="text-embedding-3-small", dimensions=8)]
    )
    held = Held()
    provider.script(held)
    with capture_logs() as logs:
        assert isinstance(await impatient.processor.process(ingestion), Failed)
    held.release.set()
    row = await paid.row(ingestion)
    assert (row.state, row.error_code) == ("failed", "attempts_exhausted")
    assert "JOB_TIMEOUT" in (row.error_message or "")
    assert [each for each in logs if each["log_level"] == "error"] == []


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


async def make_key(bench: Workbench, provider: FakeOpenAI) -> UUID:
    async with transaction(bench.resources.pool) as conn:
        key = await add_embedding_key(
            conn,
            owner_id=bench.owner.user_id,
            name="mine",
            base_url=provider.base_url,
            secret=SecretStr("sk-adas-own"),
            kek=KeyEncryptionKey(KEK),
        )
    return key.id


async def test_the_key_in_the_row_pays(paid: Workbench, provider: FakeOpenAI) -> None:
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await paid.attach(await paid.file(), [store], embedding_key_id=await make_key(paid, provider))
    assert isinstance(await paid.processor.process(ingestion), Completed)
    assert {request.authorization for request in provider.requests} == {"Bearer sk-adas-own"}


async def test_a_revoked_key_fails_before_the_file_is_even_read(paid: Workbench, provider: FakeOpenAI) -> None:
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    key_id = await make_key(paid, provider)
    file_id = await paid.file(b"\x00\x01" * 100, "unreadable.bin")
    ingestion = await paid.attach(file_id, [store], embedding_key_id=key_id)
    async with transaction(paid.resources.pool) as conn:
        await revoke_embedding_key(conn, owner_id=paid.owner.user_id, key_id=key_id)
    await paid.processor.process(ingestion)
    row = await paid.row(ingestion)
    assert (row.state, row.error_code) == ("failed", "key_revoked")
    assert provider.requests == []


async def test_without_a_server_default_the_reason_is_no_key(paid: Workbench) -> None:
    keyless = paid.with_settings(rag_openai_api_key=None)
    store = await keyless.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await keyless.attach(await keyless.file(), [store])
    await keyless.processor.process(ingestion)
    assert (await keyless.row(ingestion)).error_code == "no_embedding_key"


async def test_a_provider_of_other_dimensions_is_refused_never_padded(paid: Workbench) -> None:
    store = await paid.store(model="some-other-model", dimensions=16)
    ingestion = await paid.attach(await paid.file(), [store])
    await paid.processor.process(ingestion)
    assert (await paid.row(ingestion)).error_code == "dimension_mismatch"
    assert await paid.chunks(store) == 0


Rival = Callable[[Workbench, UUID, UUID, UUID], "asyncio.Future[None]"]


async def _cancel(bench: Workbench, ingestion: UUID, _file: UUID, _store: UUID) -> None:
    batch_id = new_id()
    async with transaction(bench.resources.pool) as conn:
        await insert_batch(conn, batch_id, owner_id=bench.owner.user_id, vector_store_id=None)
        await conn.execute("UPDATE ingestions SET batch_id = $1 WHERE id = $2", batch_id, ingestion)
        await cancel_batch(conn, batch_id)


async def _detach(bench: Workbench, _ingestion: UUID, file: UUID, store: UUID) -> None:
    async with transaction(bench.resources.pool) as conn:
        await delete_chunks(conn, await detach(conn, store_id=store, file_id=file))


async def _delete_file(bench: Workbench, _ingestion: UUID, file: UUID, _store: UUID) -> None:
    async with transaction(bench.resources.pool) as conn:
        await delete_chunks(conn, await detach_everywhere(conn, file))
        await conn.execute("DELETE FROM files WHERE id = $1", file)


async def _delete_store(bench: Workbench, _ingestion: UUID, _file: UUID, store: UUID) -> None:
    async with transaction(bench.resources.pool) as conn:
        space = await lock_store_for_deletion(conn, store)
        await detach_all(conn, store)
        await delete_store_chunks(conn, shard=space.shard, store_id=store)
        await delete_store(conn, store)


async def _attach_again(bench: Workbench, _ingestion: UUID, file: UUID, store: UUID) -> None:
    await bench.attach(file, [store])


@pytest.mark.parametrize("rival", [_cancel, _detach, _delete_file, _delete_store, _attach_again])
async def test_whoever_cancels_or_deletes_in_the_middle_wins(
    paid: Workbench, provider: FakeOpenAI, rival: Callable[..., "asyncio.Future[None]"]
) -> None:
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    file_id = await paid.file()
    ingestion = await paid.attach(file_id, [store])
    held = Held()
    provider.script(held)
    running = asyncio.create_task(paid.processor.process(ingestion))
    await provider.arrived(1)
    await rival(paid, ingestion, file_id, store)
    held.release.set()
    assert isinstance(await running, Superseded)
    assert await paid.chunks(store) == 0
    assert await paid.findings() == []


async def test_a_shutdown_gives_the_claim_back_without_costing_an_attempt(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await paid.attach(await paid.file(), [store])
    held = Held()
    provider.script(held)
    running = asyncio.create_task(paid.processor.process(ingestion))
    await provider.arrived(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    held.release.set()
    row = await paid.row(ingestion)
    assert (row.state, row.attempts, row.fence) == ("queued", 0, 1)
    assert isinstance(await paid.processor.process(ingestion), Completed)


async def test_an_attempt_that_was_given_back_is_rung_for(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        (drained,) = await claim_due(conn, limit=1, lease_seconds=30, worker="w")
        assert await give_back(conn, drained)
        assert not await give_back(conn, drained)
    await sweep(bench.resources, has_queue=True)
    job_id = job_id_of(ingestion, 2)
    assert await bench.resources.doorbell.statuses([job_id]) == {job_id: "queued"}


async def test_a_retry_that_the_queue_did_not_hear_of_is_rung_for_when_it_is_due(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await paid.attach(await paid.file(), [store])
    provider.for_word["lamp"] = Status(429, {"retry-after": "100000"})
    nowhere = paid.resources.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with open_resources(nowhere, role="test") as without:
        outcome = await Processor(without, name="test-worker").process(ingestion)
    assert isinstance(outcome, RetryLater)
    await paid.sql("UPDATE ingestions SET next_run_at = now()")
    await sweep(paid.resources, has_queue=True)
    job_id = job_id_of(ingestion, 2)
    assert await paid.resources.doorbell.statuses([job_id]) == {job_id: "queued"}


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_a_verdict_whose_answer_was_lost_agrees_with_the_row(bench: Workbench, state: str) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        held = await claim(conn, ingestion, lease_seconds=30, worker="w")
        assert held is not None
    if state == "completed":
        prepared = await prepare(bench.resources, held)
        async with transaction(bench.resources.pool) as conn:
            assert await save_docs_to_multiple_collections(conn, held, prepared) == 1
    async with transaction(bench.resources.pool) as conn:
        for _ in range(2):
            assert await fail(conn, held, code="attempts_exhausted", message="Lost.") is (state == "failed")
    assert (await bench.row(ingestion)).state == state


async def test_an_ingestion_without_any_store_ends_as_cancelled(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    await bench.sql("DELETE FROM vector_store_files")  # as by a detach that still saw an older ingestion there
    assert isinstance(await bench.processor.process(ingestion), Superseded)
    assert (await bench.row(ingestion)).state == "cancelled"


async def test_text_that_postgres_refuses_is_cleaned(bench: Workbench) -> None:
    store = await bench.store()
    text = TEXT + " before\x0b\x0cafter \ud800 end"
    ingestion = await bench.attach(await bench.file(text.encode("utf-8", "surrogatepass")), [store])
    assert isinstance(await bench.processor.process(ingestion), Completed)


async def test_deadlocks_do_not_come_from_many_at_once(bench: Workbench) -> None:
    stores = [await bench.store() for _ in range(3)]
    files = [await bench.file(f"File number {n}. {TEXT}") for n in range(6)]

    async def churn(file_id: UUID, number: int) -> None:
        for turn in range(4):
            news = [NewIngestion(new_id(), file_id, {}, 800, 400)]
            async with transaction(bench.resources.pool) as conn:
                await insert_ingestions(
                    conn, news, user_id=bench.owner.user_id, batch_id=None, embedding_key_id=None, most_hints=16
                )
                chosen = [stores[number % 3], stores[turn % 3]][:: 1 if turn % 2 else -1]
                await delete_chunks(conn, await attach(conn, news, list(dict.fromkeys(chosen))))
            await bench.processor.process(news[0].id)

    await asyncio.gather(*(churn(file_id, number) for number, file_id in enumerate(files)))
    assert await bench.findings() == []


async def test_a_cancel_at_any_moment_leaves_no_claim_behind(bench: Workbench) -> None:
    store = await bench.store()
    ingestions = [await bench.attach(await bench.file(f"File {n}"), [store]) for n in range(40)]
    running = [asyncio.create_task(bench.processor.process(ingestion)) for ingestion in ingestions]
    for number, task in enumerate(running):
        for _ in range(number % 13):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert await bench.sql("SELECT count(*) FROM ingestions WHERE state = 'running'") == 0
    await bench.sql("UPDATE ingestions SET hinted_at = NULL")  # nobody rings here
    assert await bench.findings() == []


async def test_a_message_that_postgres_refuses_is_cleaned_on_its_way(paid: Workbench, provider: FakeOpenAI) -> None:
    provider.for_word["lamp"] = Status(400, message="bad \x00 request \ud800")
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await paid.attach(await paid.file(), [store])
    assert isinstance(await paid.processor.process(ingestion), Failed)
    assert (await paid.row(ingestion)).error_code == "embedding_refused"
