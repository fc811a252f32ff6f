"""Everything that may come between while a file is on its way: others, late ones, cancels and deletes."""

import asyncio
import itertools
from collections.abc import Callable
from uuid import UUID

import pytest

from app.db import connection, transaction
from app.doorbell import job_id_of
from app.ids import new_id
from app.ingest.commit import save_docs_to_multiple_collections
from app.ingest.maintenance import sweep
from app.ingest.outcomes import Completed, Superseded
from app.ingest.prepare import prepared
from app.jobs import Retry
from app.records.batches import cancel_batch, insert_batch
from app.records.expired_leases import take_back_expired
from app.records.files import lock_files
from app.records.ingestions import (
    NewIngestion,
    claim,
    fail,
    give_back,
    insert_ingestions,
)
from app.records.store_files import attach, detach, detach_all, detach_everywhere
from app.records.turns import claim_due
from app.records.vector_stores import delete_store, lock_store_for_deletion
from app.vector.chunks import delete_chunks, delete_store_chunks
from app.worker import process_file_job
from tests.ingest.conftest import TEXT, Workbench
from tests.support.fake_openai import FakeOpenAI, Held

APART = 30.0


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
        assert await take_back_expired(conn, most_crashes=3, apart_seconds=APART) == 1
    await bench.sql("UPDATE ingestions SET next_run_at = now()")


async def test_a_worker_that_wakes_up_after_its_lease_writes_nothing(bench: Workbench) -> None:
    store = await bench.store()
    ingestion = await bench.attach(await bench.file(), [store])
    pool = bench.resources.pool
    async with connection(pool) as conn:
        frozen = await claim(conn, ingestion, lease_seconds=0.001, worker="frozen")
    assert frozen is not None
    async with prepared(bench.resources, frozen) as file:
        await take_back(bench)
        async with transaction(pool) as conn:
            assert await save_docs_to_multiple_collections(conn, frozen, file) is None
        assert isinstance(await bench.processor.process(ingestion), Completed)
        before = await bench.chunks(store)
        async with transaction(pool) as conn:
            assert await save_docs_to_multiple_collections(conn, frozen, file) is None
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


async def test_a_lost_worker_takes_no_retry_from_a_file(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        first = await claim(conn, ingestion, lease_seconds=0.0, worker="w")
    await take_back(bench)
    async with transaction(bench.resources.pool) as conn:
        second = await claim(conn, ingestion, lease_seconds=30.0, worker="w")
    assert first is not None
    assert second is not None
    assert (first.attempts, second.attempts) == (1, 1)
    assert (await bench.row(ingestion)).attempts == 2


async def crash_together(bench: Workbench, ingestions: list[UUID]) -> None:
    async with transaction(bench.resources.pool) as conn:
        for each in ingestions:
            assert await claim(conn, each, lease_seconds=0.0, worker="w") is not None
    async with transaction(bench.resources.pool) as conn:
        assert await take_back_expired(conn, most_crashes=3, apart_seconds=APART) == len(ingestions)


async def test_files_that_a_worker_had_in_hand_when_it_died_are_not_all_poison(bench: Workbench) -> None:
    store = await bench.store()
    ingestions = [await bench.attach(await bench.file(), [store]) for _ in range(4)]
    for _ in range(3):
        await crash_together(bench, ingestions)
        due = sorted([(await bench.row(each)).next_run_at for each in ingestions])
        await bench.sql("UPDATE ingestions SET next_run_at = now()")
    assert all((later - earlier).total_seconds() > APART - 4 for earlier, later in itertools.pairwise(due))
    assert {(await bench.row(each)).state for each in ingestions} == {"queued"}
    await crash_together(bench, ingestions[:1])  # alone: now it is known
    assert [(await bench.row(each)).error_code for each in ingestions] == ["poison", None, None, None]
    for each in ingestions[1:]:
        assert isinstance(await bench.processor.process(each), Completed)
    assert await bench.findings() == []


async def test_company_protects_no_file_for_ever(bench: Workbench) -> None:
    store = await bench.store()
    ingestions = [await bench.attach(await bench.file(), [store]) for _ in range(2)]
    for _ in range(9):
        await bench.sql("UPDATE ingestions SET next_run_at = now()")
        await crash_together(bench, ingestions)
    assert [(await bench.row(each)).error_code for each in ingestions] == ["poison"] * 2


async def test_a_claim_does_not_wait_for_who_changes_the_file(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        await conn.execute("SELECT FROM ingestions WHERE id = $1 FOR UPDATE", ingestion)
        for job_try, milliseconds in ((1, 250), (3, 1000), (9999, 5000)):
            with pytest.raises(Retry) as refused:
                await process_file_job({"processor": bench.processor, "job_try": job_try}, ingestion.hex, "", None)
            assert refused.value.defer_score == milliseconds
    assert isinstance(await bench.processor.process(ingestion), Completed)


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


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_a_verdict_whose_answer_was_lost_agrees_with_the_row(bench: Workbench, state: str) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        held = await claim(conn, ingestion, lease_seconds=30, worker="w")
        assert held is not None
    if state == "completed":
        async with prepared(bench.resources, held) as file, transaction(bench.resources.pool) as conn:
            assert await save_docs_to_multiple_collections(conn, held, file) == 1
    async with transaction(bench.resources.pool) as conn:
        for _ in range(2):
            assert await fail(conn, held, code="attempts_exhausted", message="Lost.") is (state == "failed")
    assert (await bench.row(ingestion)).state == state


async def test_an_ingestion_without_any_store_ends_as_cancelled(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    await bench.sql("DELETE FROM vector_store_files")  # as nobody should
    assert isinstance(await bench.processor.process(ingestion), Superseded)
    assert (await bench.row(ingestion)).state == "cancelled"


async def test_a_detachment_during_an_attachment_ends_what_was_attached(bench: Workbench) -> None:
    store, file_id = await bench.store(), await bench.file()
    await bench.attach(file_id, [store])
    new = NewIngestion(new_id(), file_id, {}, 800, 400)

    async def take_out() -> None:
        async with transaction(bench.resources.pool) as conn:
            await delete_chunks(conn, await detach(conn, store_id=store, file_id=file_id))

    async with transaction(bench.resources.pool) as conn:
        await lock_files(conn, [file_id], owner_id=bench.owner.user_id)
        await insert_ingestions(
            conn, [new], user_id=bench.owner.user_id, batch_id=None, embedding_key_id=None, most_hints=16
        )
        await attach(conn, [new], [store])
        taking_out = asyncio.ensure_future(take_out())
        async with asyncio.timeout(20):
            while not await bench.sql("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
    await taking_out
    assert (await bench.row(new.id)).state == "cancelled"
    assert await bench.findings() == []


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
