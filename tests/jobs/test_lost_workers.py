"""Workers that are killed, and a Redis that goes away: where their jobs are found afterwards."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
from rq import Queue
from rq import Retry as RQRetry
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from app.embedded import EmbeddedRedis
from app.jobs import ArqRedis, JobRequest, RedisSettings, connect_lazily
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until
from tests.jobs.redis_snapshot import assert_no_run_is_recorded, place_of

Burst = Callable[..., Awaitable[int]]
ARQ: dict[str, Any] = {"functions": [f.arq_multiply, f.arq_fail, f.arq_retry, f.arq_forever], "serializer": "json"}


@pytest.fixture
def durable_redis() -> Iterator[EmbeddedRedis]:
    with TemporaryDirectory(prefix="sluice-redis-") as folder, EmbeddedRedis(Path(folder)) as server:
        yield server


async def _reply(value: Any) -> Any:
    return value


# killed workers


@asynccontextmanager
async def worker_process(redis_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own, with a lease of a second."""
    code = (
        "from app.jobs import AsyncWorker, RedisSettings;"
        f"AsyncWorker(['q'], redis_settings=RedisSettings.from_dsn({redis_url!r}), lease_seconds=1).work()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_killed_workers_job_runs_again_after_its_lease(
    *, queue: Queue, run_worker: RunWorker, redis_url: str, tmp_path: Path, until: Until
) -> None:
    job = queue.enqueue(f.kill_worker_once, str(tmp_path / "mark"), job_id="one")
    async with worker_process(redis_url) as process:
        assert await process.wait() == -signal.SIGKILL
    assert place_of(queue.connection, "one") == ["started", "wip"], "nobody has noticed yet"
    async with run_worker(**PLAIN, lease_seconds=1):
        await until(lambda: _reply(job.is_finished))
    assert place_of(queue.connection, "one") == ["finished", "finished"]
    assert job.return_value() == "survived"
    await until(lambda: _reply(not list(queue.connection.scan_iter("rq:execution*"))))
    assert queue.connection.zcard("rq:wip:q") == 0


async def test_all_jobs_of_a_lost_worker_run_again_at_once(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    """Also those beyond what one script takes back; `until` waits for less long than a second look would take."""
    async with run_worker(**ARQ, ctx={"started": asyncio.Event()}, max_jobs=250, lease_seconds=600) as lost:
        await pool.enqueue_jobs([JobRequest("arq_forever", queue_name="q") for _ in range(250)])
        await until(lambda: _reply(len(lost.running) == 250))
        members = sync_redis.zrange("rq:wip:q", 0, -1)
        sync_redis.zadd("rq:wip:q", dict.fromkeys(members, 1))
        async with run_worker(**ARQ, ctx={"started": asyncio.Event()}, max_jobs=250, lease_seconds=600) as other:
            await until(lambda: _reply(len(other.running) == 250))


async def test_keys_that_are_no_records_stop_nobody(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    """Whoever can write to Redis can put anything there; the jobs of all the others go on."""
    for name in ("waiting", "running", "later", "retaken"):
        sync_redis.set(f"rq:job:{name}", "no record")
    sync_redis.zadd("rq:wip:q", {"running:1": 1})
    sync_redis.zadd("rq:scheduled:q", {"later": 1})
    sync_redis.rpush("rq:queue:q", "waiting")
    assert await pool.enqueue_job("arq_multiply", 1, 2, _job_id="retaken", _queue_name="q") is not None
    assert await pool.withdraw_jobs(["waiting", "running"]) == 0
    async with run_worker(**ARQ, lease_seconds=1):
        await until(lambda: _reply(place_of(sync_redis, "retaken") == ["finished", "finished"]))
        await until(lambda: _reply(not sync_redis.exists("rq:scheduled:q", "rq:wip:q", "rq:queue:q")))


async def test_a_job_that_kills_each_worker_fails_at_last(
    queue: Queue, run_worker: RunWorker, redis_url: str, until: Until
) -> None:
    """The third worker that is lost is the last: the fourth, in the test's own process, only writes it down."""
    job = queue.enqueue(f.kill_worker, job_id="one", retry=RQRetry(max=9))
    for _ in range(3):
        async with worker_process(redis_url) as process:
            assert await process.wait() == -signal.SIGKILL
    async with run_worker(**PLAIN, lease_seconds=1):
        await until(lambda: _reply(job.is_failed))
    assert place_of(queue.connection, "one") == ["failed", "failed"]
    result = job.latest_result()
    assert result is not None
    assert "3 workers were lost" in (result.exc_string or "")
    assert queue.connection.zcard("rq:wip:q") == 0
    assert list(queue.connection.scan_iter("rq:execution*")) == []


async def test_a_stock_clean_up_fails_a_killed_workers_job_as_abandoned(
    queue: Queue, redis_url: str, until: Until
) -> None:
    job = queue.enqueue(f.kill_worker, job_id="one")
    async with worker_process(redis_url) as process:
        await process.wait()
    registry = StartedJobRegistry("q", connection=queue.connection)
    (member,) = queue.connection.zrange(registry.key, 0, -1)
    queue.connection.zadd(registry.key, {member: 1})  # a lease that has run out
    registry.cleanup()
    assert place_of(queue.connection, "one") == ["failed", "failed"]
    result = job.latest_result()
    assert result is not None
    assert "AbandonedJobError" in (result.exc_string or "")


async def test_a_worker_that_was_thought_dead_does_not_record_over_another(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    """Its job is taken back while it runs; the other worker's result is the one that counts."""
    ctx = {"started": asyncio.Event()}
    async with run_worker(**ARQ, ctx=ctx, lease_seconds=600, max_jobs=1) as slow:
        await pool.enqueue_job("arq_forever", _job_id="one")
        await ctx["started"].wait()
        (member,) = sync_redis.zrange("rq:wip:q", 0, -1)
        sync_redis.zadd("rq:wip:q", {member: 1})
        async with run_worker(**ARQ, ctx={"started": asyncio.Event()}, job_timeout=0.1, lease_seconds=1):
            await until(lambda: _reply(place_of(sync_redis, "one")[0] == "failed"))
        (running,) = slow.running.values()
        running.cancel()
        await until(lambda: _reply(not slow.running))
    assert place_of(sync_redis, "one") == ["failed", "failed"]
    assert sync_redis.xlen("rq:results:one") == 1
    assert_no_run_is_recorded(sync_redis)


# Redis away


async def test_a_job_that_ends_while_redis_is_away_is_recorded_when_it_is_back(
    durable_redis: EmbeddedRedis, run_worker: RunWorker, until: Until
) -> None:
    go = asyncio.Event()

    async def wait(ctx: dict[str, Any]) -> str:
        ctx["started"].set()
        await go.wait()
        return "went"

    ctx = {"started": asyncio.Event()}
    pool = connect_lazily(RedisSettings.from_dsn(durable_redis.url), default_queue_name="q", serializer="json")
    options = {"url": durable_redis.url, "functions": [wait], "ctx": ctx, "lease_seconds": 30}
    async with run_worker(**options) as worker:
        await pool.enqueue_job(wait.__qualname__, _job_id="one")
        await ctx["started"].wait()
        await asyncio.to_thread(durable_redis.stop)
        go.set()
        await until(lambda: _reply(worker.executor.active_count == 0))
        assert len(worker.running) == 1, "it has ended, and nobody knows"
        await asyncio.to_thread(durable_redis.start)
        await until(lambda: _reply(not worker.running))
        with redis.Redis.from_url(durable_redis.url) as client:
            assert place_of(client, "one") == ["finished", "finished"]
            assert client.xlen("rq:results:one") == 1
            assert_no_run_is_recorded(client)
    await pool.aclose()


async def test_a_redis_that_lost_its_memory_gets_no_trace_of_a_job_that_it_does_not_know(
    own_redis: EmbeddedRedis, run_worker: RunWorker, until: Until
) -> None:
    ctx = {"started": asyncio.Event()}
    pool = connect_lazily(RedisSettings.from_dsn(own_redis.url), default_queue_name="q", serializer="json")
    async with run_worker(**ARQ, url=own_redis.url, ctx=ctx, job_timeout=1, lease_seconds=30) as worker:
        await pool.enqueue_job("arq_forever", _job_id="one")
        await ctx["started"].wait()
        own_redis.flush()
        await until(lambda: _reply(not worker.running))
        with redis.Redis.from_url(own_redis.url) as client:
            assert place_of(client, "one") == ["no job"]
            assert not client.exists("rq:results:one")
            assert_no_run_is_recorded(client)
    await pool.aclose()


async def test_jobs_wait_out_a_restart_of_redis(
    durable_redis: EmbeddedRedis, run_worker: RunWorker, until: Until
) -> None:
    with redis.Redis.from_url(durable_redis.url) as client:
        client.config_set("appendfsync", "always")  # else a Redis whose disk is busy loses what it has just taken
        queue = Queue("q", connection=client, serializer=JSONSerializer)
        for number in range(20):
            queue.enqueue(f.nothing, job_id=f"n{number}")
        queue.enqueue(f.fail, job_id="bad")
    await asyncio.to_thread(durable_redis.stop, kill_signal=signal.SIGKILL)
    async with run_worker(url=durable_redis.url, functions=None, lease_seconds=1):
        await asyncio.to_thread(durable_redis.start)
        with redis.Redis.from_url(durable_redis.url) as client:
            await until(lambda: _reply(client.zcard("rq:finished:q") == 20 and client.zcard("rq:failed:q") == 1))
            assert place_of(client, "n0") == ["finished", "finished"]
            assert Job.fetch("bad", connection=client, serializer=JSONSerializer).is_failed
            assert_no_run_is_recorded(client)
