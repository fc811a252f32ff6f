"""Each change of a job's status: what it is afterwards, which registry holds it, and no trace of its run."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import redis
from rq import Queue
from rq import Retry as RQRetry
from rq.command import send_stop_job_command

from app.jobs import ArqRedis, AsyncWorker, RedisSettings
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, reply
from tests.jobs.redis_snapshot import assert_no_run_is_recorded, place_of

Burst = Callable[..., Awaitable[int]]
ARQ: dict[str, Any] = {"functions": [f.arq_multiply, f.arq_fail, f.arq_retry, f.arq_forever], "serializer": "json"}


@pytest.fixture
def burst(redis_url: str) -> Burst:
    async def run(*, job_limit: int | None = None, **options: Any) -> int:
        settings = RedisSettings.from_dsn(redis_url)
        worker = AsyncWorker(["q"], redis_settings=settings, **(PLAIN | {"max_jobs": 1} | options))
        return await worker.run(burst=True, job_limit=job_limit)

    return run


# one run


@pytest.mark.parametrize(
    ("function", "options", "then"),
    [
        (f.nothing, {}, ["finished", "finished"]),
        (f.nothing, {"result_ttl": 0}, ["no job"]),
        (f.nothing, {"result_ttl": -1}, ["finished", "finished"]),
        (f.add_meta_async, {}, ["finished", "finished"]),
        (f.fail, {}, ["failed", "failed"]),
        (f.fail_async, {"failure_ttl": -1}, ["failed", "failed"]),
        (f.fail, {"retry": RQRetry(max=2)}, ["failed", "failed"]),
        (f.fail_once, {"retry": RQRetry(max=2)}, ["finished", "finished"]),
        (f.fail, {"retry": RQRetry(max=2, interval=60)}, ["scheduled", "scheduled"]),
        (f.ask_again_once, {}, ["finished", "finished"]),
        (f.too_long, {"job_timeout": 1}, ["failed", "failed"]),
        (f.too_long_async, {"job_timeout": 1}, ["failed", "failed"]),
        (f.too_long_async, {"job_timeout": 1, "retry": RQRetry(max=1, interval=60)}, ["scheduled", "scheduled"]),
        (f.stop_itself, {}, ["stopped", "failed"]),
        (f.stop_itself, {"retry": RQRetry(max=2)}, ["stopped", "failed"]),
        (f.exit_process, {}, ["failed", "failed"]),
        ("no.such.function", {}, ["failed", "failed"]),
    ],
)
async def test_where_a_job_of_rqs_ends(
    queue: Queue, burst: Burst, *, function: Any, options: dict[str, Any], then: list[str]
) -> None:
    client = queue.connection
    queue.enqueue(function, job_id="one", **options)
    assert place_of(client, "one") == ["queued", "queue"]
    await burst()
    assert place_of(client, "one") == then
    assert_no_run_is_recorded(client)


@pytest.mark.parametrize(
    ("call", "options", "then"),
    [
        (("arq_multiply", 2, 3), {}, ["finished", "finished"]),
        (("arq_multiply", 2, 3), {"keep_result": 0}, ["no job"]),
        (("arq_multiply", 2, 3), {"keep_result_forever": True}, ["finished", "finished"]),
        (("arq_fail",), {}, ["failed", "failed"]),
        (("arq_fail",), {"keep_result": 0}, ["no job"]),
        (("arq_retry", 3), {}, ["finished", "finished"]),
        (("arq_retry", 2, 60), {}, ["scheduled", "scheduled"]),
        (("arq_retry", 9), {"max_tries": 2}, ["failed", "failed"]),
        (("arq_forever",), {"job_timeout": 0.2}, ["failed", "failed"]),
        (("missing",), {}, ["failed", "failed"]),
    ],
)
async def test_where_a_job_of_arqs_ends(
    pool: ArqRedis, burst: Burst, sync_redis: redis.Redis, *, call: Any, options: dict[str, Any], then: list[str]
) -> None:
    await pool.enqueue_job(*call, _job_id="one")
    assert place_of(sync_redis, "one") == ["queued", "queue"]
    await burst(**ARQ, ctx={"started": asyncio.Event()}, **options)
    assert place_of(sync_redis, "one") == then
    assert_no_run_is_recorded(sync_redis)


@pytest.mark.parametrize("function", [f.fail, f.ask_again_once])
async def test_a_job_that_is_to_run_again_at_once_waits_in_its_queue(
    queue: Queue, burst: Burst, function: Any
) -> None:
    queue.enqueue(function, job_id="one", retry=RQRetry(max=2))
    await burst(job_limit=1)
    assert place_of(queue.connection, "one") == ["queued", "queue"]
    assert_no_run_is_recorded(queue.connection)


async def test_arqs_retry_waits_in_its_queue(pool: ArqRedis, burst: Burst, sync_redis: redis.Redis) -> None:
    await pool.enqueue_job("arq_retry", 3, _job_id="one")
    await pool.enqueue_job("arq_retry", 3, _job_id="other")
    await burst(**ARQ, job_limit=1)
    assert place_of(sync_redis, "one") == ["queued", "queue"]
    assert sync_redis.lrange("rq:queue:q", 0, -1) == [b"one", b"other"]
    assert_no_run_is_recorded(sync_redis)


async def test_a_job_is_started_while_it_runs(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(**ARQ, ctx=ctx):
        await pool.enqueue_job("arq_forever", _job_id="one")
        await ctx["started"].wait()
        assert place_of(sync_redis, "one") == ["started", "wip"]
        assert len(list(sync_redis.scan_iter("rq:execution:one:*"))) == 1
    assert place_of(sync_redis, "one") == ["queued", "queue"], "a shutdown gives it back"
    assert_no_run_is_recorded(sync_redis)


async def test_a_job_that_is_due_later_goes_from_scheduled_to_finished(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    job = await pool.enqueue_job("arq_multiply", 1, 1, _job_id="one", _defer_by=0.5)
    assert job is not None
    assert place_of(sync_redis, "one") == ["scheduled", "scheduled"]
    async with run_worker(**ARQ):
        await job.result(10)
    assert place_of(sync_redis, "one") == ["finished", "finished"]
    assert_no_run_is_recorded(sync_redis)


async def test_a_job_that_came_too_late_fails(pool: ArqRedis, burst: Burst, sync_redis: redis.Redis) -> None:
    await pool.enqueue_job("arq_multiply", 1, 1, _job_id="one", _expires=0.001)
    async with asyncio.timeout(10):
        while await pool.time() == await pool.time():  # until Redis' clock has moved on
            pass
    await burst(**ARQ)
    assert place_of(sync_redis, "one") == ["failed", "failed"]
    assert_no_run_is_recorded(sync_redis)


# dependents, cancelling


async def test_a_dependent_waits_as_deferred_and_then_runs(queue: Queue, burst: Burst) -> None:
    first = queue.enqueue(f.nothing, job_id="first")
    queue.enqueue(f.nothing, job_id="second", depends_on=first)
    assert place_of(queue.connection, "second") == ["deferred", "deferred"]
    await burst()
    assert place_of(queue.connection, "first") == ["finished", "finished"]
    assert place_of(queue.connection, "second") == ["finished", "finished"]
    assert_no_run_is_recorded(queue.connection)


async def test_a_dependent_of_a_failure_stays_deferred(queue: Queue, burst: Burst) -> None:
    first = queue.enqueue(f.fail, job_id="first")
    queue.enqueue(f.nothing, job_id="second", depends_on=first)
    await burst()
    assert place_of(queue.connection, "first") == ["failed", "failed"]
    assert place_of(queue.connection, "second") == ["deferred", "deferred"]
    assert_no_run_is_recorded(queue.connection)


async def test_a_cancelled_job_stays_cancelled(queue: Queue, burst: Burst) -> None:
    queue.enqueue(f.nothing, job_id="one").cancel()
    await burst()
    assert place_of(queue.connection, "one") == ["canceled", "canceled"]
    assert_no_run_is_recorded(queue.connection)


async def test_a_job_that_is_deleted_while_it_waits_leaves_nothing(queue: Queue, burst: Burst) -> None:
    job = queue.enqueue(f.nothing, job_id="one")
    queue.connection.delete(job.key)
    await burst()
    assert place_of(queue.connection, "one") == ["no job"]
    assert_no_run_is_recorded(queue.connection)


# stop, abort


async def test_a_job_that_is_stopped_fails_as_stopped_and_others_run_on(
    queue: Queue, run_worker: RunWorker, until: Until, sync_redis: redis.Redis
) -> None:
    async with run_worker(**PLAIN) as worker:
        for job_id in ("one", "other"):
            queue.enqueue(f.tell_and_wait, job_id=job_id)
        await until(lambda: reply(sync_redis.llen("test:started") == 2))
        send_stop_job_command(sync_redis, "one")
        await until(lambda: reply(len(worker.running) == 1))
        assert place_of(sync_redis, "one") == ["stopped", "failed"]
        assert place_of(sync_redis, "other") == ["started", "wip"]
    assert_no_run_is_recorded(sync_redis)


@pytest.mark.parametrize("defer", [0, 60])
async def test_an_aborted_job_that_waits_is_recorded_as_stopped(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis, defer: float
) -> None:
    job = await pool.enqueue_job("arq_multiply", 1, 1, _job_id="one", _defer_by=defer)
    assert job is not None
    with suppress(TimeoutError):
        await job.abort(timeout=0)
    assert place_of(sync_redis, "one") == ["queued", "queue"]
    async with run_worker(**ARQ):
        assert await job.abort(timeout=10) is True
    assert place_of(sync_redis, "one") == ["stopped", "failed"]
    assert_no_run_is_recorded(sync_redis)


async def test_an_aborted_job_that_runs_is_recorded_as_stopped(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(**ARQ, ctx=ctx):
        job = await pool.enqueue_job("arq_forever", _job_id="one")
        assert job is not None
        await ctx["started"].wait()
        assert await job.abort(timeout=10) is True
    assert place_of(sync_redis, "one") == ["stopped", "failed"]
    assert_no_run_is_recorded(sync_redis)
