"""Leases under real attempts: kept by a beat of their own, lost with the claim or with the loop."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.db import DatabaseUnavailable, connection, transaction
from app.ingest.leases import LeaseKeeper
from app.ingest.outcomes import Completed, Superseded
from app.records.expired_leases import give_back_unanswered, take_back_expired
from app.records.ingestions import claim
from app.records.store_files import detach_all
from tests.ingest.conftest import Workbench
from tests.support.fake_openai import FakeOpenAI, Held


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt under way; set `answer` and the provider answers."""

    bench: Workbench
    store: UUID
    ingestion: UUID
    running: "asyncio.Task[object]"
    answer: asyncio.Event


@asynccontextmanager
async def held_attempt(paid: Workbench, provider: FakeOpenAI, *, lease_seconds: float) -> AsyncIterator[Attempt]:
    """An attempt that waits for the provider's answer, its lease kept alive."""
    bench = paid.with_settings(lease_seconds=lease_seconds)
    store = await bench.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await bench.attach(await bench.file(), [store])
    held = Held()
    provider.script(held)
    async with bench.processor.keeping_leases():
        running = asyncio.create_task(bench.processor.process(ingestion))
        await provider.arrived(1)
        yield Attempt(bench, store, ingestion, running, held.release)
    held.release.set()


async def test_a_lost_lease_stops_the_work(paid: Workbench, provider: FakeOpenAI) -> None:
    async with held_attempt(paid, provider, lease_seconds=0.3) as attempt:
        async with transaction(attempt.bench.resources.pool) as conn:
            await detach_all(conn, attempt.store)
        async with asyncio.timeout(10):  # the provider never answers: only the beat can end this
            assert isinstance(await attempt.running, Superseded)


async def test_a_long_attempt_keeps_its_lease(paid: Workbench, provider: FakeOpenAI) -> None:
    async with held_attempt(paid, provider, lease_seconds=0.3) as attempt:
        first = await attempt.bench.sql("SELECT lease_until FROM ingestions")
        async with asyncio.timeout(10):
            while await attempt.bench.sql("SELECT lease_until FROM ingestions") == first:
                await asyncio.sleep(0.01)
        attempt.answer.set()
        assert isinstance(await attempt.running, Completed)


async def test_a_loop_that_is_busy_keeps_its_leases(paid: Workbench, provider: FakeOpenAI) -> None:
    async with held_attempt(paid, provider, lease_seconds=3.0) as attempt:
        first = await attempt.bench.sql("SELECT lease_until FROM ingestions")
        # this loop stands still until the lease has moved, a third of it
        await_from_another_thread(attempt.bench, "SELECT lease_until <> $1 FROM ingestions", first)
        attempt.answer.set()
        assert isinstance(await attempt.running, Completed)


def await_from_another_thread(bench: Workbench, condition: str, *values: Any) -> None:
    """Stand still until an SQL condition holds, asked from another thread's loop."""

    async def watch() -> None:
        conn = await asyncpg.connect(bench.resources.settings.database_url)
        try:
            async with asyncio.timeout(10):
                while not await conn.fetchval(condition, *values):
                    await asyncio.sleep(0.01)
        finally:
            await conn.close()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, watch()).result()


async def test_a_loop_that_has_died_loses_its_leases(paid: Workbench, provider: FakeOpenAI) -> None:
    async with held_attempt(paid, provider, lease_seconds=0.6) as attempt:
        # this loop stands still until the lease has ended
        await_from_another_thread(attempt.bench, "SELECT lease_until < now() FROM ingestions")
        attempt.answer.set()
        await attempt.running


async def test_the_beat_has_its_connection_before_there_is_a_lease(bench: Workbench) -> None:
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sluice-leases%'"
    async with bench.processor.keeping_leases(), asyncio.timeout(10):
        while await bench.sql(ours) != 1:
            await asyncio.sleep(0.01)


async def test_a_beat_that_hears_nothing_costs_no_lease(paid: Workbench, provider: FakeOpenAI) -> None:
    backend = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'sluice-leases%'"
    async with held_attempt(paid, provider, lease_seconds=6.0) as attempt:
        async with asyncio.timeout(20):
            while (frozen := await attempt.bench.sql(backend)) is None:
                await asyncio.sleep(0.01)
        assert isinstance(frozen, int)
        await until_extended(attempt)
        os.kill(frozen, signal.SIGSTOP)
        try:
            left = await until_extended(attempt)
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert left > 0  # of the old lease: before, the second beat came when it was over


async def test_a_row_that_is_locked_at_the_beat_is_extended_soon_after(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    asked = "SELECT max(query_start) FROM pg_stat_activity WHERE application_name LIKE 'sluice-leases%'"
    async with held_attempt(paid, provider, lease_seconds=6.0) as attempt, asyncio.timeout(20):
        conn = await asyncpg.connect(attempt.bench.resources.settings.database_url)  # it may wait in a transaction
        async with conn.transaction():
            await conn.execute("SELECT FROM ingestions FOR UPDATE")
            before = await attempt.bench.sql(asked)
            while await attempt.bench.sql(asked) == before:
                await asyncio.sleep(0.01)
        await conn.close()
        assert await until_extended(attempt) > 2.5  # the next beat by the clock would leave 2


async def until_extended(attempt: Attempt) -> float:
    """How much of the lease was left when it was extended."""
    before = await attempt.bench.sql("SELECT lease_until FROM ingestions")
    async with asyncio.timeout(20):
        while await attempt.bench.sql("SELECT lease_until = $1 FROM ingestions", before):
            await asyncio.sleep(0.01)
    left = await attempt.bench.sql("SELECT extract(epoch FROM $1 - clock_timestamp())::float8", before)
    assert isinstance(left, float)
    return left


async def test_of_two_attempts_at_a_row_in_one_process_the_older_one_is_stopped(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        older = await claim(conn, ingestion, lease_seconds=0.0, worker="the same")
    async with transaction(bench.resources.pool) as conn:
        await take_back_expired(conn, most_crashes=3, apart_seconds=30)
    await bench.sql("UPDATE ingestions SET next_run_at = now()")
    async with transaction(bench.resources.pool) as conn:
        newer = await claim(conn, ingestion, lease_seconds=30.0, worker="the same")
    assert older is not None
    assert newer is not None
    keeper = LeaseKeeper(bench.resources.settings.database_url, lease_seconds=0.3, name="the same")
    async with keeper.keeping():
        with keeper.hold(older) as lost, keeper.hold(newer) as kept:
            await asyncio.wait_for(asyncio.Event().wait(), 10)
        assert lost.scope.cancel_called
        assert not kept.scope.cancel_called


@pytest.mark.parametrize("drains", [False, True])
async def test_a_claim_whose_answer_is_lost_costs_neither_a_lease_nor_a_crash(
    bench: Workbench, *, drains: bool
) -> None:
    store = await bench.store()
    ingestion = await bench.attach(await bench.file(), [store])
    async with bench.from_afar() as (far, wire), far.processor.keeping_leases(), asyncio.timeout(20):
        wire.answer_to_swallow = b"COMMIT" if drains else b"a.txt"
        claiming: asyncio.Future[object] = asyncio.ensure_future(
            far.processor.claim_due(1) if drains else far.processor.process(ingestion)
        )
        while wire.answer_to_swallow is not None:
            await asyncio.sleep(0.01)
        wire.reset()
        with pytest.raises(DatabaseUnavailable):
            await claiming
        assert (await bench.row(ingestion)).started_at is not None, "it was claimed"
        while (await bench.row(ingestion)).state == "running":  # nobody sweeps here
            await asyncio.sleep(0.01)
        row = await bench.row(ingestion)
        assert (row.state, row.attempts, row.crashes) == ("queued", 0, 0)
        assert isinstance(await far.processor.process(ingestion), Completed)
    assert await bench.findings() == []


async def test_of_what_was_claimed_only_what_nobody_holds_is_given_back(bench: Workbench) -> None:
    store = await bench.store()
    predecessors, held, others, lost = [await bench.attach(await bench.file(f"{n}"), [store]) for n in range(4)]
    name = bench.processor.name

    async def claimed(ingestion: UUID, worker: str) -> tuple[UUID, int]:
        async with connection(bench.resources.pool) as conn:
            claim_ = await claim(conn, ingestion, lease_seconds=30, worker=worker)
        assert claim_ is not None
        return ingestion, claim_.fence

    await claimed(predecessors, name)  # a worker of this name that died; its file may be what killed it
    await bench.sql(
        "UPDATE ingestions SET started_at = started_at - interval '1 minute' WHERE id = $1", predecessors
    )
    known = await claimed(held, name)
    await claimed(others, "another")
    await claimed(lost, name)
    async with connection(bench.resources.pool) as conn:
        given_back = await give_back_unanswered(
            conn, worker=name, held=[known], from_seconds_ago=30.0, to_seconds_ago=0.0, timeout_seconds=10
        )
    assert given_back == 1
    assert (await bench.row(lost)).state == "queued"


async def test_a_claim_that_is_lost_at_the_very_end_is_given_back(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with bench.from_afar() as (far, wire), asyncio.timeout(20):
        async with far.processor.keeping_leases():
            ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sluice-leases%'"
            while await bench.sql(ours) != 1:
                await asyncio.sleep(0.01)
            wire.answer_to_swallow = b"a.txt"
            claiming = asyncio.ensure_future(far.processor.process(ingestion))
            while wire.answer_to_swallow is not None:
                await asyncio.sleep(0.01)
            wire.reset()  # the beat's connection as well
            with pytest.raises(DatabaseUnavailable):
                await claiming
        assert (await bench.row(ingestion)).state == "queued"
