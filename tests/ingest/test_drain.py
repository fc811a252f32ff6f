"""Workers and the drain: files reach their end with Redis, without it, and while it goes and comes back."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID

import anyio
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from app.access.tokens import Principal
from app.db import transaction
from app.doctor import examine
from app.doorbell import Doorbell, job_id_of
from app.embedded import EmbeddedRedis
from app.ids import new_id
from app.ingest.maintenance import maintain
from app.ingest.process import Processor
from app.records.ingestions import Hint
from app.resources import open_resources
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
