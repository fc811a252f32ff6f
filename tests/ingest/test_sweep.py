"""The sweep: nothing stays behind that somebody has lost, forgotten or withdrawn."""

import asyncio
from itertools import pairwise

import anyio
import pytest
from redis.asyncio import Redis

from app.db import DatabaseUnavailable, transaction
from app.doorbell import job_id_of
from app.ids import new_id
from app.ingest.maintenance import maintain, sweep
from app.records.accepted_requests import RequestIdentity, accept
from app.records.hints import mark_unhinted
from app.records.ingestions import Hint, cancel, claim
from app.records.turns import claim_due
from app.resources import Resources, open_resources
from app.settings import Settings
from tests.ingest.conftest import Workbench


async def test_the_sweep_rings_for_work_that_nobody_was_told_of(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    await bench.sql("UPDATE ingestions SET hinted_at = NULL")
    await sweep(bench.resources, has_queue=True)
    job_id = job_id_of(ingestion, 1)
    assert await bench.resources.doorbell.statuses([job_id]) == {job_id: "queued"}
    await sweep(bench.resources, has_queue=True)
    view = await bench.resources.doorbell.get_job_status(job_id)
    assert view is not None
    assert view.status == "queued"


async def test_the_sweep_rings_again_though_the_attempts_first_job_is_over(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    doorbell, job_id = bench.resources.doorbell, job_id_of(ingestion, 1)
    await doorbell.enqueue_file_processing_jobs([Hint(ingestion, bench.owner.user_id, None, 1)])
    assert bench.resources.settings.redis_url is not None
    redis = Redis.from_url(bench.resources.settings.redis_url)
    await redis.hset(f"rq:job:{job_id}", "status", "failed")  # as when Postgres was away at the claim
    await redis.aclose()
    await bench.sql(
        "UPDATE ingestions SET hinted_at = now() - interval '1 hour', next_run_at = now() - interval '1 hour'"
    )
    await sweep(bench.resources, has_queue=True)
    assert await doorbell.statuses([job_id]) == {job_id: "queued"}


async def test_the_sweep_is_patient_with_a_long_queue(bench: Workbench, settings: Settings) -> None:
    """Where 50,000 jobs wait, one that has waited for a while is not lost."""
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    seen = "SELECT hinted_at > now() - interval '1 minute' FROM ingestions"
    silence = bench.resources.settings.sweep_interval_seconds * 6
    redis = Redis.from_url(settings.redis_url or "")
    await redis.rpush("rq:queue:file_processing", *range(50_000))
    assert await bench.resources.doorbell.is_job_queue_available()
    await sweep(bench.resources, has_queue=True)
    await bench.sql("UPDATE queue_epochs SET since = now() - interval '1 day'")
    for sweeps, is_rung in ((9, False), (11, True)):
        since = silence * sweeps
        await bench.sql(
            f"UPDATE ingestions SET hinted_at = now() - interval '{since + 60} s',"
            f" next_run_at = now() - interval '{since} s'"
        )
        await sweep(bench.resources, has_queue=True)
        assert await bench.sql(seen) is is_rung
    assert await bench.resources.doorbell.statuses([job_id_of(ingestion, 1)]) == {job_id_of(ingestion, 1): "queued"}
    await redis.aclose()


async def test_a_redis_that_has_lost_its_memory_is_told_of_everything_at_once(
    bench: Workbench, settings: Settings
) -> None:
    """Not after the silence of some sweeps: the epoch that Postgres knows is not Redis' any more."""
    doorbell, store = bench.resources.doorbell, await bench.store()
    assert await doorbell.is_job_queue_available()
    await sweep(bench.resources, has_queue=True)
    ingestions = [await bench.attach(await bench.file(), [store]) for _ in range(3)]
    hints = [Hint(each, bench.owner.user_id, None, 1) for each in ingestions]
    jobs = [job_id_of(each, 1) for each in ingestions]
    assert await doorbell.enqueue_file_processing_jobs(hints)
    redis = Redis.from_url(settings.redis_url or "")
    await redis.flushall()
    await redis.aclose()
    await sweep(bench.resources, has_queue=True)
    assert set((await doorbell.statuses(jobs)).values()) == {None}  # nobody has looked at Redis yet
    assert await doorbell.is_job_queue_available()
    await sweep(bench.resources, has_queue=True)
    assert set((await doorbell.statuses(jobs)).values()) == {"queued"}


@pytest.mark.parametrize("garbage", [b"garbage", b"\xff", b"a list"])
async def test_what_somebody_put_in_the_place_of_the_epoch_stops_no_sweep(
    bench: Workbench, settings: Settings, garbage: bytes
) -> None:
    doorbell = bench.resources.doorbell
    async with Redis.from_url(settings.redis_url or "") as redis:
        await (redis.lpush if garbage == b"a list" else redis.set)("sluice:epoch", garbage)
    assert await doorbell.is_job_queue_available()
    epoch = doorbell.epoch
    assert epoch is not None
    assert await doorbell.is_job_queue_available()
    assert doorbell.epoch == epoch


async def test_the_sweep_withdraws_jobs_of_what_was_cancelled_or_taken_from_postgres(bench: Workbench) -> None:
    doorbell, store = bench.resources.doorbell, await bench.store()
    cancelled, delayed, drained, stopped, waiting = [
        await bench.attach(await bench.file(), [store]) for _ in range(5)
    ]
    hints = [Hint(each, bench.owner.user_id, None, 1) for each in (cancelled, drained, stopped, waiting)]
    assert await doorbell.enqueue_file_processing_jobs(
        [*hints, Hint(delayed, bench.owner.user_id, None, 1, delay_seconds=3600)]
    )
    async with transaction(bench.resources.pool) as conn:
        await cancel(conn, cancelled)
        await cancel(conn, delayed)
    await bench.sql("UPDATE ingestions SET next_run_at = now() + interval '1 h' WHERE id = $1", waiting)
    async with transaction(bench.resources.pool) as conn:
        held = await claim_due(conn, limit=9, lease_seconds=30, worker="drain")
        await cancel(conn, stopped)
    for each in held:
        await bench.processor.run(each)
    assert [(await bench.row(each)).state for each in (drained, stopped)] == ["completed", "cancelled"]
    await sweep(bench.resources, has_queue=True)
    jobs = [job_id_of(each, 1) for each in (cancelled, delayed, drained, stopped, waiting)]
    assert list((await doorbell.statuses(jobs)).values()) == [None, None, None, None, "queued"]
    assert await bench.sql("SELECT array_agg(id) FROM ingestions WHERE hinted_at IS NOT NULL") == [waiting]


async def test_rows_that_a_rival_holds_do_not_keep_the_sweep(bench: Workbench) -> None:
    file_id = await bench.file()
    await bench.sql(
        """
        INSERT INTO ingestions (id, user_id, file_id, state, stage, hinted_at, finished_at,
                                max_chunk_size_tokens, chunk_overlap_tokens)
        SELECT gen_random_uuid(), $1, $2, 'completed', 'done', now(), now(), 800, 400 FROM generate_series(1, 5000)
        """,
        bench.owner.user_id,
        file_id,
    )
    async with transaction(bench.resources.pool) as conn:
        await conn.execute("SELECT FROM ingestions FOR UPDATE")
        with anyio.fail_after(20):
            assert await sweep(bench.resources, has_queue=True)
    await sweep(bench.resources, has_queue=True)
    assert await bench.sql("SELECT count(hinted_at) FROM ingestions") == 0


async def test_jobs_are_withdrawn_once_redis_is_back(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        await cancel(conn, ingestion)
    nowhere = bench.resources.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with open_resources(nowhere, role="test") as without:
        assert not await sweep(without, has_queue=True)
    assert await bench.sql("SELECT hinted_at IS NOT NULL FROM ingestions")
    assert await sweep(bench.resources, has_queue=True)
    assert await bench.sql("SELECT hinted_at IS NULL FROM ingestions")


async def test_the_sweep_takes_expired_leases_back(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        await claim(conn, ingestion, lease_seconds=0.0, worker="lost")
    await sweep(bench.resources, has_queue=True)
    row = await bench.row(ingestion)
    assert (row.state, row.crashes) == ("queued", 1)
    assert "lost" in (row.error_message or "")
    assert await bench.sql(
        "SELECT next_run_at BETWEEN now() - interval '5 s' AND now() + interval '1 s' FROM ingestions"
    )
    await bench.sql("UPDATE ingestions SET next_run_at = now()")
    await sweep(bench.resources, has_queue=True)
    assert list((await bench.resources.doorbell.statuses([job_id_of(ingestion, 2)])).values()) == ["queued"]


async def test_leases_that_ended_while_postgres_was_away_are_no_crashes(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[bool] = []
    stop = anyio.Event()

    async def observed(_resources: Resources, *, has_queue: bool, takes_back: bool, stop: anyio.Event) -> bool:
        judged.append(takes_back)
        if sum(judged) == 2:
            stop.set()
        elif takes_back:
            raise DatabaseUnavailable
        return has_queue

    monkeypatch.setattr("app.ingest.maintenance.sweep", observed)
    quick = bench.with_settings(lease_seconds=0.5, sweep_interval_seconds=0.1)
    with anyio.fail_after(10):
        await maintain(quick.processor, concurrency=1, stop=stop)
    changes = [now for before, now in pairwise(judged) if now != before]
    assert (judged[0], changes) == (False, [True, False, True])  # nor does one judge who has just started


async def test_the_sweep_leaves_leases_alone_when_told_so(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    async with transaction(bench.resources.pool) as conn:
        await claim(conn, ingestion, lease_seconds=0.0, worker="cut off")
    await sweep(bench.resources, has_queue=True, takes_back=False)
    assert (await bench.row(ingestion)).state == "running"


async def test_the_sweep_forgets_requests_that_cannot_come_again(bench: Workbench) -> None:
    user_id, old, new = bench.owner.user_id, b"old", b"new"
    for fingerprint, keep_seconds in ((old, -1.0), (new, 60.0)):
        request = RequestIdentity(fingerprint, b"", keep_seconds, first_sent_seconds=None, is_named=True)
        async with transaction(bench.resources.pool) as conn:
            await accept(conn, request, user_id=user_id, created_id=new_id())
    await sweep(bench.resources, has_queue=True)
    assert await bench.sql("SELECT array_agg(fingerprint) FROM accepted_requests") == [new]


async def test_one_sweeps_at_a_time(bench: Workbench) -> None:
    await bench.attach(await bench.file(), [await bench.store()])
    await bench.sql("UPDATE ingestions SET hinted_at = NULL")
    async with transaction(bench.resources.pool) as conn:
        await conn.execute("SELECT pg_advisory_xact_lock($1)", 0x534C55494345)
        await sweep(bench.resources, has_queue=True)
        assert await bench.sql("SELECT count(*) FROM ingestions WHERE hinted_at IS NOT NULL") == 0
    await sweep(bench.resources, has_queue=True)
    assert await bench.sql("SELECT count(*) FROM ingestions WHERE hinted_at IS NOT NULL") == 1


async def test_hints_that_nobody_heard_are_noted_in_the_order_of_all_locks(bench: Workbench) -> None:
    store = await bench.store()
    first, second = [await bench.attach(await bench.file(), [store]) for _ in range(2)]
    await bench.sql(
        "UPDATE ingestions SET billed_tokens = 1 WHERE id = $1", first
    )  # it lies behind the other one now
    hints = [Hint(each, bench.owner.user_id, None, 1) for each in (second, first)]

    async def note() -> None:
        async with transaction(bench.resources.pool) as conn:
            for kind in ("indexscan", "bitmapscan", "indexonlyscan"):  # as where a table lies in another order
                await conn.execute(f"SET LOCAL enable_{kind} = off")
            await mark_unhinted(conn, hints)

    async with transaction(bench.resources.pool) as conn:
        await conn.execute("SELECT FROM ingestions WHERE id = $1 FOR UPDATE", first)
        noting = asyncio.create_task(note())
        async with asyncio.timeout(10):
            while not await bench.sql("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        await conn.execute("SELECT FROM ingestions WHERE id = $1 FOR UPDATE NOWAIT", second)
    await noting
    assert await bench.sql("SELECT count(hinted_at) FROM ingestions") == 0
