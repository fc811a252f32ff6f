"""The sweep and the drain: nothing stays behind, with or without Redis."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import anyio
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from app.access.tokens import Principal
from app.db import DatabaseUnavailable, transaction
from app.doctor import examine
from app.doorbell import Doorbell, job_id_of
from app.embedded import EmbeddedRedis
from app.ids import new_id
from app.ingest.maintenance import maintain, sweep
from app.ingest.process import Processor
from app.records.accepted_requests import RequestIdentity, accept
from app.records.hints import mark_unhinted
from app.records.ingestions import Hint, cancel, claim
from app.records.turns import claim_due
from app.resources import Resources, open_resources
from app.settings import Settings
from app.worker import run_worker
from tests.ingest.conftest import Workbench
from tests.support.fake_openai import FakeOpenAI, Held


async def until_settled(bench: Workbench, *ingestions: UUID) -> list[str]:
    async with asyncio.timeout(30):
        while True:
            states = [(await bench.row(ingestion)).state for ingestion in ingestions]
            if not {"queued", "running"} & set(states):
                return states
            await asyncio.sleep(0.02)


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
        request = RequestIdentity(fingerprint, b"", may_repeat=True, keep_seconds=keep_seconds)
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


async def test_without_a_queue_files_are_drained_from_postgres(
    settings: Settings, make_principal: Callable[[str], Awaitable[tuple[Principal, str]]]
) -> None:
    owner, _ = await make_principal("ada")
    without = settings.model_copy(update={"enable_job_queue": False, "redis_url": None})
    async with open_resources(without, role="test") as resources:
        bench = Workbench(resources, owner)
        store = await bench.store()
        ingestions = [await bench.attach(await bench.file(f"File {n}"), [store]) for n in range(7)]
        async with anyio.create_task_group() as group:
            group.start_soon(_maintain, bench.processor)
            assert await until_settled(bench, *ingestions) == ["completed"] * 7
            group.cancel_scope.cancel()
        assert await bench.findings() == []


async def _maintain(processor: Processor) -> None:
    async with processor.keeping_leases():
        await maintain(processor, concurrency=2, stop=anyio.Event())


@pytest.fixture
def with_own_redis(settings: Settings, own_redis: EmbeddedRedis) -> Settings:
    return settings.model_copy(update={"redis_url": own_redis.url})


async def test_a_redis_that_dies_and_comes_back_costs_nothing(
    with_own_redis: Settings,
    own_redis: EmbeddedRedis,
    make_principal: Callable[[str], Awaitable[tuple[Principal, str]]],
) -> None:
    owner, _ = await make_principal("ada")
    async with open_resources(with_own_redis, role="test") as resources, anyio.create_task_group() as group:
        bench = Workbench(resources, owner)
        store = await bench.store()

        async def put(name: str) -> UUID:
            ingestion = await bench.attach(await bench.file(f"{name} " * 30), [store])
            await resources.doorbell.enqueue_file_processing_jobs([Hint(ingestion, owner.user_id, None, 1)])
            return ingestion

        group.start_soon(run_worker, with_own_redis)
        assert await until_settled(bench, await put("with redis")) == ["completed"]
        await asyncio.to_thread(own_redis.stop)
        away = [await put(f"without {n}") for n in range(5)]
        assert await until_settled(bench, *away) == ["completed"] * 5
        await asyncio.to_thread(own_redis.start)
        async with asyncio.timeout(20):
            while not await resources.doorbell.is_job_queue_available():
                await asyncio.sleep(0.05)
        assert await until_settled(bench, await put("back")) == ["completed"]
        group.cancel_scope.cancel()
        assert [row for row in await examine(resources) if "RQ job" not in row.promise] == []


async def test_a_flushed_redis_loses_nothing(
    with_own_redis: Settings,
    own_redis: EmbeddedRedis,
    make_principal: Callable[[str], Awaitable[tuple[Principal, str]]],
) -> None:
    owner, _ = await make_principal("ada")
    async with open_resources(with_own_redis, role="test") as resources:
        bench = Workbench(resources, owner)
        store = await bench.store()
        ingestions = [await bench.attach(await bench.file(f"File {n} " * 30), [store]) for n in range(5)]
        await resources.doorbell.enqueue_file_processing_jobs(
            [Hint(each, owner.user_id, None, 1) for each in ingestions]
        )
        await asyncio.to_thread(own_redis.flush)
        async with anyio.create_task_group() as group:
            group.start_soon(run_worker, with_own_redis)
            assert await until_settled(bench, *ingestions) == ["completed"] * 5
            group.cancel_scope.cancel()
        assert await bench.findings() == []


async def test_the_queue_gives_up_no_file_that_its_row_has_not(bench: Workbench, settings: Settings) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    doorbell, job_id = bench.resources.doorbell, job_id_of(ingestion, 1)
    await doorbell.enqueue_file_processing_jobs([Hint(ingestion, bench.owner.user_id, None, 1)])
    assert settings.redis_url is not None
    async with Redis.from_url(settings.redis_url) as redis:
        assert not await redis.hexists(f"rq:job:{job_id}", "expires_at")
        await redis.hset(f"rq:job:{job_id}", "job_try", "100")  # given back at so many shutdowns
    async with anyio.create_task_group() as group:
        group.start_soon(run_worker, settings)
        async with asyncio.timeout(30):
            while await doorbell.statuses([job_id]) != {job_id: "finished"}:
                await asyncio.sleep(0.02)
        group.cancel_scope.cancel()
    assert (await bench.row(ingestion)).state == "completed"


async def test_a_stock_rq_worker_processes_a_file(bench: Workbench, settings: Settings) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    await bench.resources.doorbell.enqueue_file_processing_jobs([Hint(ingestion, bench.owner.user_id, None, 1)])
    assert settings.redis_url is not None
    environment = {
        **os.environ,
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "STORAGE_URL": settings.storage_url,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rq.cli", "worker", "file_processing", "--burst", "-u", settings.redis_url,
        "-S", "rq.serializers.JSONSerializer", env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert (await bench.row(ingestion)).state == "completed", errors.decode()
    job_id = job_id_of(ingestion, 1)
    assert await bench.resources.doorbell.statuses([job_id]) == {job_id: "finished"}
    assert await bench.findings() == []


async def test_a_redis_that_goes_and_comes_back_is_two_lines_in_the_log(
    with_own_redis: Settings, own_redis: EmbeddedRedis
) -> None:
    async with open_resources(with_own_redis, role="test") as resources:
        with capture_logs() as logs:
            assert await resources.doorbell.is_job_queue_available()
            own_redis.stop()
            for _ in range(3):
                assert not await resources.doorbell.is_job_queue_available()
                assert not await resources.doorbell.enqueue_file_processing_jobs(
                    [Hint(new_id(), new_id(), None, 1)]
                )
            own_redis.start()
            async with asyncio.timeout(20):
                while not await resources.doorbell.is_job_queue_available():
                    await asyncio.sleep(0.05)
    ours = [(each["log_level"], each["event"]) for each in logs if "job queue" in each["event"]]
    assert ours == [
        ("warning", "job queue unavailable, files are taken from Postgres"),
        ("info", "job queue available again"),
    ]


@pytest.mark.parametrize("setting", [("maxmemory", "1"), ("min-replicas-to-write", "1")])
async def test_a_redis_that_answers_but_takes_no_write_is_none(
    with_own_redis: Settings,
    own_redis: EmbeddedRedis,
    make_principal: Callable[[str], Awaitable[tuple[Principal, str]]],
    setting: tuple[str, str],
) -> None:
    owner, _ = await make_principal("ada")
    redis = Redis.from_url(own_redis.url)
    await redis.config_set(*setting)
    await redis.aclose()
    async with open_resources(with_own_redis, role="test") as resources:
        assert not await resources.doorbell.is_job_queue_available()
        bench = Workbench(resources, owner)
        ingestion = await bench.attach(await bench.file(), [await bench.store()])
        async with anyio.create_task_group() as group:
            group.start_soon(run_worker, with_own_redis)
            assert await until_settled(bench, ingestion) == ["completed"]
            group.cancel_scope.cancel()


async def test_nothing_is_drained_after_a_signal_that_came_during_the_sweep(bench: Workbench) -> None:
    ingestion = await bench.attach(await bench.file(), [await bench.store()])
    no_queue = replace(bench.resources, doorbell=Doorbell(None, bench.resources.settings))
    stop = anyio.Event()
    async with anyio.create_task_group() as group, transaction(bench.resources.pool) as conn:
        await conn.execute("LOCK TABLE accepted_requests")  # the sweep waits here
        group.start_soon(lambda: maintain(Processor(no_queue, name="drain"), concurrency=2, stop=stop))
        async with asyncio.timeout(10):
            while not await bench.sql("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        stop.set()
    assert (await bench.row(ingestion)).fence == 0


async def test_a_signal_ends_the_drain_too_but_not_what_it_has_in_hand(
    paid: Workbench, provider: FakeOpenAI
) -> None:
    without = paid.with_settings(enable_job_queue=False, redis_url=None, worker_concurrency=1)
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    in_hand, waiting = [await paid.attach(await paid.file(f"File {n}"), [store]) for n in range(2)]
    held = Held()
    provider.script(held)
    working = asyncio.create_task(run_worker(without.resources.settings))
    await provider.arrived(1)
    os.kill(os.getpid(), signal.SIGTERM)
    done, _ = await asyncio.wait({working}, timeout=0.5)
    assert not done
    held.release.set()
    async with asyncio.timeout(10):
        await working
    assert [(await paid.row(each)).state for each in (in_hand, waiting)] == ["completed", "queued"]


@pytest.mark.parametrize("has_queue", [True, False])
async def test_a_second_signal_gives_everything_back_at_once_and_costs_no_attempt(
    paid: Workbench, provider: FakeOpenAI, *, has_queue: bool
) -> None:
    if not has_queue:
        paid = paid.with_settings(enable_job_queue=False, redis_url=None)
    store = await paid.store(model="text-embedding-3-small", dimensions=8)
    ingestion = await paid.attach(await paid.file(), [store])
    held = Held()
    provider.script(held)
    assert await paid.resources.doorbell.enqueue_file_processing_jobs(
        [Hint(ingestion, paid.owner.user_id, None, 1)]
    )
    working = asyncio.create_task(run_worker(paid.resources.settings))
    await provider.arrived(1)
    os.kill(os.getpid(), signal.SIGTERM)
    done, _ = await asyncio.wait({working}, timeout=1.1)
    assert not done  # it may finish what it has in hand; within a second it would be the same signal
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await working
    held.release.set()
    row = await paid.row(ingestion)
    assert (row.state, row.attempts) == ("queued", 0)
