"""One tenant's trouble is its own: neither a huge batch nor a key that is throttled holds up the others."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import anyio
import pytest

from app.access.tokens import Principal
from app.api.attaching import FileToAttach, attach_files
from app.db import transaction
from app.doorbell import Doorbell, job_id_of
from app.embedding import Embedder
from app.extraction import Chunking
from app.ingest.maintenance import maintain, sweep
from app.ingest.outcomes import Completed, Failed, RetryLater
from app.records.ingestions import Claim, cancel
from app.records.turns import NOBODY, claim_due, turn_after, users_waiting
from app.ringing import ring
from app.worker import run_worker
from tests.ingest.conftest import Workbench
from tests.support.fake_openai import FakeOpenAI, Status

PAID = {"model": "text-embedding-3-small", "dimensions": 8}


@pytest.fixture
async def other(
    bench: Workbench, make_principal: Callable[[str], Awaitable[tuple[Principal, str]]]
) -> AsyncIterator[Workbench]:
    """A second user's bench."""
    bob, _ = await make_principal("bob")
    return Workbench(bench.resources, bob)


async def upload(bench: Workbench, files: int) -> list[UUID]:
    """Attach files at once and ring, as the API does."""
    store = await bench.store()
    new = [FileToAttach(await bench.file(f"File {n}"), Chunking()) for n in range(files)]
    async with transaction(bench.resources.pool) as conn:
        hints = await attach_files(conn, bench.resources.settings, bench.owner, files=new, store_ids=[store])
    await ring(bench.resources, hints)
    rows = await bench.sql(
        "SELECT array_agg(id ORDER BY id) FROM ingestions WHERE user_id = $1", bench.owner.user_id
    )
    assert isinstance(rows, list)
    return rows


def without_queue(bench: Workbench) -> Workbench:
    settings = bench.resources.settings.model_copy(update={"enable_job_queue": False, "redis_url": None})
    resources = replace(bench.resources, settings=settings, doorbell=Doorbell(None, settings))
    return Workbench(resources, bench.owner)


async def until_completed(bench: Workbench, ingestions: Sequence[UUID]) -> None:
    async with asyncio.timeout(60):
        while await bench.sql(
            "SELECT count(*) FROM ingestions WHERE id = ANY($1) AND state <> 'completed'", ingestions
        ):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("has_queue", [True, False])
async def test_a_single_file_is_not_held_up_by_somebody_elses_batch(
    bench: Workbench, other: Workbench, *, has_queue: bool
) -> None:
    bench, other = (each if has_queue else without_queue(each) for each in (bench, other))
    two = bench.with_settings(worker_concurrency=2)
    many = await upload(two, 40)
    (one,) = await upload(other, 1)
    async with anyio.create_task_group() as group:
        group.start_soon(run_worker, two.resources.settings)
        await until_completed(bench, [*many, one])
        group.cancel_scope.cancel()
    before = await bench.sql(
        "SELECT count(*) FROM ingestions WHERE finished_at < (SELECT finished_at FROM ingestions WHERE id = $1)",
        one,
    )
    assert isinstance(before, int)
    assert before <= 10  # what the queue had heard of, and what the slots had in hand
    assert await bench.findings() == []


async def test_the_queue_hears_of_a_users_next_files_and_of_one_more_for_each_that_is_begun(
    bench: Workbench,
) -> None:
    few = bench.with_settings(worker_concurrency=4)
    ingestions = await upload(few, 6)
    jobs = [job_id_of(each, 1) for each in ingestions]

    async def told() -> list[str | None]:
        return list((await few.resources.doorbell.statuses(jobs)).values())

    assert await told() == ["queued"] * 4 + [None] * 2
    assert await upload(few, 1)
    assert await bench.sql("SELECT count(*) FROM ingestions WHERE hinted_at IS NOT NULL") == 4
    assert isinstance(await few.processor.process(ingestions[0]), Completed)
    assert (await told())[1:] == ["queued"] * 4 + [None]
    await sweep(few.resources, has_queue=True)
    assert (await told())[1:] == ["queued"] * 4 + [None]


async def test_a_file_that_is_refused_before_it_is_read_rings_for_the_next(bench: Workbench) -> None:
    few = bench.with_settings(worker_concurrency=4)
    ingestions = await upload(few, 6)
    await bench.sql("UPDATE vector_stores SET model = 'text-embedding-3-small'")
    outcome = await few.processor.process(ingestions[0])
    assert isinstance(outcome, Failed)
    assert outcome.code == "no_embedding_key"
    jobs = [job_id_of(each, 1) for each in ingestions[1:]]
    assert list((await few.resources.doorbell.statuses(jobs)).values()) == ["queued"] * 4 + [None]


async def test_the_sweep_rings_for_the_next_where_those_before_are_gone(bench: Workbench) -> None:
    few = bench.with_settings(worker_concurrency=4)
    ingestions = await upload(few, 9)
    for each in ingestions[:4]:
        async with transaction(bench.resources.pool) as conn:
            await cancel(conn, each)
    await sweep(few.resources, has_queue=True)
    jobs = [job_id_of(each, 1) for each in ingestions]
    assert list((await few.resources.doorbell.statuses(jobs)).values()) == [None] * 4 + ["queued"] * 4 + [None]


async def test_users_take_turns(bench: Workbench, other: Workbench) -> None:
    for each, files in ((bench, 5), (other, 2)):
        store = await each.store()
        for n in range(files):
            await each.attach(await each.file(f"File {n}"), [store])
    served: list[UUID] = []
    after = NOBODY
    for limit in (1, 1, 1, 1, 2, 9):
        async with transaction(bench.resources.pool) as conn:
            claims = await claim_due(conn, limit=limit, lease_seconds=30, worker="w", after=after)
        after = turn_after(claims, after)
        served += sorted(held.user_id for held in claims)
    ada, bob = bench.owner.user_id, other.owner.user_id
    assert served == [ada, bob, ada, bob, ada, ada, ada]


def test_the_turn_is_behind_the_last_who_was_served_though_it_went_round() -> None:
    low, middle, high = (UUID(int=n) for n in (1, 2, 3))

    def claims(*users: UUID) -> list[Claim]:
        return [Claim(user, 1, 1, user, user, "a.txt", None, None, 800, 400) for user in users]

    assert turn_after([], middle) == middle
    assert turn_after(claims(high, low), middle) == low
    assert turn_after(claims(middle, high), low) == high


async def test_a_user_whose_work_is_not_due_takes_nobodys_turn(bench: Workbench, other: Workbench) -> None:
    for each in (bench, other):
        await each.attach(await each.file(), [await each.store()])
    await bench.sql(
        "UPDATE ingestions SET next_run_at = now() + interval '1 h' WHERE user_id = $1", bench.owner.user_id
    )
    async with transaction(bench.resources.pool) as conn:
        assert await users_waiting(conn, after=NOBODY, limit=9) == [other.owner.user_id]
        assert await users_waiting(conn, after=other.owner.user_id, limit=9) == []
        (held,) = await claim_due(conn, limit=1, lease_seconds=30, worker="w")
    assert held.user_id == other.owner.user_id


async def test_a_pause_that_the_provider_asks_for_puts_off_all_that_wait_for_the_key(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    dear, free = await paid.store(**PAID), await paid.store()
    first, second, third = [await paid.attach(await paid.file(f"lamp {n}"), [dear]) for n in range(3)]
    local = await paid.attach(await paid.file(), [free])
    provider.for_word["lamp"] = Status(429, {"retry-after": "1000"})
    assert isinstance(await paid.processor.process(first), RetryLater)
    for each in (second, third):
        row = await paid.row(each)
        assert (row.next_run_at - datetime.now(UTC)).total_seconds() > 900
        assert "limits its rate" in (row.error_message or "")
    assert isinstance(await paid.processor.process(local), Completed)
    assert await paid.findings() == []


async def test_a_pause_that_is_known_is_waited_for_before_the_file_is_read(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    store = await paid.store(**PAID)
    provider.script(Status(429, {"retry-after": "1000"}))
    assert isinstance(await paid.processor.process(await paid.attach(await paid.file(), [store])), RetryLater)
    unreadable = await paid.attach(await paid.file(b"\x00\x01" * 100, "unreadable.bin"), [store])
    outcome = await paid.processor.process(unreadable)
    assert isinstance(outcome, RetryLater)
    assert outcome.delay_seconds > 900
    assert ((await paid.row(unreadable)).attempts, len(provider.requests)) == (0, 1)
    await paid.sql("UPDATE ingestions SET next_run_at = now()")
    await sweep(paid.resources, has_queue=True)
    job_id = job_id_of(unreadable, 2)
    assert await paid.resources.doorbell.statuses([job_id]) == {job_id: "queued"}


@asynccontextmanager
async def maintaining(bench: Workbench, *, concurrency: int) -> AsyncIterator[None]:
    async def run() -> None:
        async with bench.processor.keeping_leases():
            await maintain(bench.processor, concurrency=concurrency, stop=anyio.Event())

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        yield
        group.cancel_scope.cancel()


async def test_files_of_a_throttled_key_leave_a_slot_to_others(
    paid: Workbench, provider: FakeOpenAI, make_principal: Callable[[str], Awaitable[tuple[Principal, str]]]
) -> None:
    provider.script(*[Status(429, {"retry-after": "0.3"})] * 10_000)
    async with Embedder(batch_size=1, concurrency=1, timeout_seconds=5, patience_seconds=1, slots=2) as embedder:
        parts = replace(without_queue(paid).resources, embedder=embedder)
        bench = Workbench(parts, paid.owner)
        dear, free = await bench.store(**PAID), await bench.store()
        for n in range(8):  # whose turns come first; the server's key pays for all of them
            user = Workbench(parts, (await make_principal(f"user {n}"))[0])
            await user.attach(await user.file(f"throttled {n}"), [dear])
        last = Workbench(parts, (await make_principal("last"))[0])
        local = await last.attach(await last.file("mine"), [free])
        async with maintaining(bench, concurrency=2):
            await until_completed(bench, [local])
    tried = {text for request in provider.requests for text in request.texts}
    assert len(tried) <= 3  # the two that met the first complaint, and one more
