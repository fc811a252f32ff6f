"""Embeddings that somebody pays for: with which key, how often, and what a provider may do to a file."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.access.embedding_keys import add_embedding_key, revoke_embedding_key
from app.db import transaction
from app.doorbell import job_id_of
from app.embedding.embedder import Embedder
from app.ingest.maintenance import sweep
from app.ingest.outcomes import Completed, Failed, RetryLater
from app.ingest.process import Processor
from app.resources import open_resources
from app.settings import KeyEncryptionKey
from tests.conftest import KEK
from tests.ingest.conftest import TEXT, Workbench
from tests.support.fake_openai import FakeOpenAI, Held, Status


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


@pytest.mark.parametrize(("word", "is_committed"), [(b"INSERT INTO embedded_texts", False), (b"COMMIT", True)])
async def test_vectors_are_paid_for_once_though_postgres_goes_away_while_they_are_kept(
    paid: Workbench, provider: FakeOpenAI, word: bytes, *, is_committed: bool
) -> None:
    ingestion = await paid.attach(
        await paid.file(), [await paid.store(model="text-embedding-3-small", dimensions=8)]
    )
    async with paid.from_afar() as (far, wire):
        wire.cut_at, wire.cuts_after = word, is_committed
        outcome = await far.processor.process(ingestion)
        assert wire.cut_at is None
    assert isinstance(outcome, Completed)
    assert await paid.sql("SELECT count(*) FROM embedded_texts") == outcome.chunks
    assert (await paid.row(ingestion)).billed_tokens == provider.billed_tokens > 0
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


async def test_vectors_are_not_kept_without_what_they_cost(paid: Workbench, provider: FakeOpenAI) -> None:
    ingestion = await paid.attach(
        await paid.file(), [await paid.store(model="text-embedding-3-small", dimensions=8)]
    )
    await paid.sql("ALTER TABLE ingestions ADD CONSTRAINT unbilled CHECK (billed_tokens = 0)")
    assert isinstance(await paid.processor.process(ingestion), RetryLater)
    await paid.sql("ALTER TABLE ingestions DROP CONSTRAINT unbilled")
    await paid.sql("UPDATE ingestions SET next_run_at = now()")
    assert await paid.sql("SELECT count(*) FROM embedded_texts") == 0
    first = provider.billed_tokens
    assert isinstance(await paid.processor.process(ingestion), Completed)
    assert (await paid.row(ingestion)).billed_tokens == provider.billed_tokens - first == first


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


async def test_a_message_that_postgres_refuses_is_cleaned_on_its_way(paid: Workbench, provider: FakeOpenAI) -> None:
    provider.for_word["lamp"] = Status(400, message="bad \x00 request \ud800")
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await paid.attach(await paid.file(), [store])
    assert isinstance(await paid.processor.process(ingestion), Failed)
    assert (await paid.row(ingestion)).error_code == "embedding_refused"
