"""AsyncWorker against a real Redis: what it gives back, takes up again, and does not trip over."""

import asyncio
import os
import sys
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from rq import Callback, Queue
from rq import Retry as RQRetry
from rq import Worker as StockWorker
from rq.job import JobStatus as RQStatus

from app.embedded import EmbeddedRedis
from app.jobs import (
    ArqRedis,
    AsyncWorker,
    JobRequest,
    RedisSettings,
    connect_lazily,
)
from tests.jobs import functions
from tests.jobs.conftest import RunWorker, fetch, reply

Until = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


async def test_shutdown_gives_running_jobs_back_to_the_front(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(max_jobs=1, ctx=ctx):
        await pool.enqueue_job("forever", _job_id="first")
        await pool.enqueue_job("forever", _job_id="second")
        async with asyncio.timeout(10):
            await ctx["started"].wait()
    assert Queue("q", connection=sync_redis).job_ids == ["first", "second"]
    assert fetch(sync_redis, "first").get_status() is RQStatus.QUEUED
    assert not list(sync_redis.scan_iter("rq:execution*"))


async def test_ids_that_lead_nowhere_do_not_end_the_worker(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    sync_redis.rpush("rq:queue:q", "gone", "not:legal", b"\xff\xfe")
    sync_redis.hset("rq:job:broken", mapping={"status": "nonsense"})
    sync_redis.rpush("rq:queue:q", "broken")
    async with run_worker():
        job = await pool.enqueue_job("multiply", 1, 5)
        assert job is not None
        assert await job.result(10) == 5
    assert sync_redis.llen("rq:queue:q:intermediate") == 0


async def test_several_queues_are_served_in_order(redis_url: str, run_worker: RunWorker, pool: ArqRedis) -> None:
    low = await pool.enqueue_job("multiply", 1, 2, _queue_name="low")
    high = await pool.enqueue_job("multiply", 1, 3, _queue_name="high")
    assert low is not None
    assert high is not None
    async with run_worker(queues=["high", "low"], max_jobs=1):
        assert [await high.result(10), await low.result(10)] == [3, 2]
        later = await pool.enqueue_job("multiply", 1, 4, _queue_name="low")
        assert later is not None
        assert await later.result(10) == 4
    first, second = await high.result_info(), await low.result_info()
    assert first is not None
    assert second is not None
    assert first.finish_time <= second.start_time  # type: ignore[operator]


async def test_a_burst_ends_when_the_queue_is_empty(pool: ArqRedis, redis_url: str) -> None:
    await pool.enqueue_jobs([JobRequest("multiply", (n, 1)) for n in range(130)])
    worker = AsyncWorker(
        ["q"], redis_settings=RedisSettings.from_dsn(redis_url), functions=[functions.multiply],
        serializer="json", max_jobs=100,
    )  # fmt: skip
    assert await worker.run(burst=True) == 130
    assert await pool.zcard("rq:finished:q") == 130


async def test_a_killed_workers_job_runs_again(
    pool: ArqRedis, run_worker: RunWorker, tmp_path, redis_url: str
) -> None:
    job = await pool.enqueue_job("kill_worker_once", str(tmp_path / "mark"))
    assert job is not None
    code = (
        "from app.jobs import AsyncWorker, RedisSettings; from tests.jobs import functions;"
        f"AsyncWorker(['q'], redis_settings=RedisSettings.from_dsn({redis_url!r}), serializer='json',"
        "functions=[functions.kill_worker_once], lease_seconds=1).work()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert await process.wait() == -9
    async with run_worker(lease_seconds=1):
        assert await job.result(20) == "try 2"


async def test_a_job_stuck_between_list_and_start_runs(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    job = await pool.enqueue_job("multiply", 3, 3)
    assert job is not None
    sync_redis.lmove("rq:queue:q", "rq:queue:q:intermediate")
    async with run_worker(lease_seconds=0.3):
        assert await job.result(20) == 9


async def test_a_job_that_was_taken_away_is_cancelled_and_leaves_no_record(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(ctx=ctx, lease_seconds=0.6) as worker:
        await pool.enqueue_job("forever", _job_id="stolen")
        async with asyncio.timeout(10):
            await ctx["started"].wait()
        sync_redis.delete("rq:wip:q")
        sync_redis.hset("rq:job:stolen", "status", "finished")
        await until(lambda: reply(not worker.running))
        assert fetch(sync_redis, "stolen").get_status() is RQStatus.FINISHED


async def test_a_worker_outlives_redis_and_works_on(own_redis: EmbeddedRedis, run_worker: RunWorker) -> None:
    pool = connect_lazily(RedisSettings.from_dsn(own_redis.url), default_queue_name="q", serializer="json")
    async with run_worker(url=own_redis.url, lease_seconds=1):
        first = await pool.enqueue_job("multiply", 1, 1)
        assert first is not None
        assert await first.result(10) == 1
        await asyncio.to_thread(own_redis.stop)
        await asyncio.to_thread(own_redis.start)
        second = await pool.enqueue_job("multiply", 2, 2)
        assert second is not None
        assert await second.result(20) == 4
    await pool.aclose()


async def test_a_worker_starts_while_redis_is_away(own_redis: EmbeddedRedis, run_worker: RunWorker) -> None:
    await asyncio.to_thread(own_redis.stop)
    async with run_worker(url=own_redis.url):
        await asyncio.to_thread(own_redis.start)
        pool = connect_lazily(RedisSettings.from_dsn(own_redis.url), default_queue_name="q", serializer="json")
        job = await pool.enqueue_job("multiply", 2, 2)
        assert job is not None
        assert await job.result(20) == 4
        await pool.aclose()


async def test_a_worker_that_never_saw_redis_stops_when_told(own_redis: EmbeddedRedis) -> None:
    await asyncio.to_thread(own_redis.stop)
    worker = AsyncWorker(["q"], redis_settings=RedisSettings.from_dsn(own_redis.url), serializer="json")
    stop = anyio.Event()
    task = asyncio.create_task(worker.run(stop=stop))
    await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(10):
        assert await task == 0


async def test_dependents_run_after_the_job_they_wait_for(
    run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    queue = Queue("q", connection=sync_redis)
    first = queue.enqueue(functions.add, 1, 1)
    second = queue.enqueue(functions.add, 2, 2, depends_on=first)
    async with run_worker(functions=None, serializer=None):
        await until(lambda: reply(second.is_finished))
    assert second.return_value() == 4


async def test_rq_retries_and_callbacks_are_settled_by_rqs_own_code(
    run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    queue = Queue("q", connection=sync_redis)
    job = queue.enqueue(
        functions.fail, retry=RQRetry(max=2), on_failure=Callback("tests.jobs.functions.note_failure")
    )
    async with run_worker(functions=None, serializer=None):
        await until(lambda: reply(job.get_status() is RQStatus.FAILED))
    job.refresh()
    assert job.retries_left == 0
    assert sync_redis.get("noted") == b"3"


async def test_a_redis_that_forgot_everything_gets_to_know_the_worker_again(
    own_redis: EmbeddedRedis, run_worker: RunWorker, until: Until
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:

        async def knows() -> bool:
            return [worker.name for worker in StockWorker.all(connection=client)] == ["known"]

        async with run_worker(url=own_redis.url, lease_seconds=0.3, name="known"):
            await until(knows)
            for _ in range(2):  # twice: the thread that beats must outlive the first time
                own_redis.flush()
                await until(knows)
            pool = connect_lazily(RedisSettings.from_dsn(own_redis.url), default_queue_name="q", serializer="json")
            job = await pool.enqueue_job("multiply", 2, 3)
            assert job is not None
            assert await job.result(10) == 6
            await pool.aclose()


@pytest.mark.parametrize(
    "poison",
    [
        {"job_try": "x"},
        {"retries_left": "many"},
        {"result_ttl": "x", "failure_ttl": "y"},
        {"timeout": "soon"},
        {"created_at": "never"},
        {"enqueued_at": "never"},
        {"expires_at": "never"},
        {"repeats_left": "x"},
        {"meta": b"\x80\x04junk"},
        {"dependency_ids": "[junk", "rate_limit_key": "k"},
        {"webhooks": "junk"},
        {"data": b"junk"},
        {"data": zlib.compress(b"[" * 100_000)},
        {"origin": "another"},
    ],
    ids=",".join,
)
async def test_a_poisoned_record_hurts_its_own_job_only(
    pool: ArqRedis, sync_redis: redis.Redis, run_worker: RunWorker, poison: dict[str, str]
) -> None:
    bad = await pool.enqueue_job("multiply", 2, 3)
    assert bad is not None
    sync_redis.hset(f"rq:job:{bad.job_id}", mapping=poison)  # type: ignore[arg-type]
    async with run_worker() as worker:
        good = await pool.enqueue_job("multiply", 6, 7)
        assert good is not None
        assert await good.result(10) == 42
        async with asyncio.timeout(10):
            while worker.running:
                await asyncio.sleep(0.01)
    assert sync_redis.hget(f"rq:job:{bad.job_id}", "status") in {b"finished", b"failed"}
    assert sync_redis.zcard("rq:wip:q") == 0
