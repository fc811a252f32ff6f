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
from rq import Queue, Repeat
from rq import Retry as RQRetry
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from app.embedded import EmbeddedRedis
from app.jobs import ArqRedis, JobRequest, RedisSettings, connect_lazily
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, lose_worker, reply
from tests.jobs.redis_snapshot import assert_no_run_is_recorded, place_of

Burst = Callable[..., Awaitable[int]]
ARQ: dict[str, Any] = {"functions": [f.arq_multiply, f.arq_fail, f.arq_retry, f.arq_forever], "serializer": "json"}


@pytest.fixture
def durable_redis() -> Iterator[EmbeddedRedis]:
    with TemporaryDirectory(prefix="sluice-redis-") as folder, EmbeddedRedis(Path(folder)) as server:
        yield server


# killed workers


@asynccontextmanager
async def worker_process(redis_url: str, grace_seconds: float = 25) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own, with a lease of a second."""
    code = (
        "from app.jobs import AsyncWorker, RedisSettings;"
        f"AsyncWorker(['q'], redis_settings=RedisSettings.from_dsn({redis_url!r}), lease_seconds=1,"
        f"shutdown_grace_seconds={grace_seconds}, cleanup_seconds=0.1).work()"
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
        await until(lambda: reply(job.is_finished))
    assert place_of(queue.connection, "one") == ["finished", "finished"]
    assert job.return_value() == "survived"
    await until(lambda: reply(not list(queue.connection.scan_iter("rq:execution*"))))
    assert queue.connection.zcard("rq:wip:q") == 0


async def test_a_worker_whose_loop_stands_still_loses_its_jobs(
    *, queue: Queue, run_worker: RunWorker, redis_url: str, until: Until
) -> None:
    job = queue.enqueue(f.block_the_loop_once, job_id="one")
    async with worker_process(redis_url):
        await until(lambda: reply(queue.connection.exists("test:runs:one")))
        async with run_worker(**PLAIN, lease_seconds=1):
            await until(lambda: reply(job.is_finished))


async def test_a_job_that_swallows_its_cancellation_does_not_keep_the_process(
    queue: Queue, redis_url: str, until: Until
) -> None:
    queue.enqueue(f.swallow_cancellations, job_id="one")
    async with worker_process(redis_url, grace_seconds=0.1) as process:
        await until(lambda: reply(queue.connection.llen("test:started")))
        process.terminate()
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    assert place_of(queue.connection, "one") == ["started", "wip"], "its lease runs out"


async def test_all_jobs_of_a_lost_worker_run_again_at_once(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    """Also those beyond what one script takes back; `until` waits for less long than a second look would take."""
    async with run_worker(**ARQ, ctx={"started": asyncio.Event()}, max_jobs=250, lease_seconds=600) as lost:
        await pool.enqueue_jobs([JobRequest("arq_forever", queue_name="q") for _ in range(250)])
        await until(lambda: reply(len(lost.running) == 250))
        members = sync_redis.zrange("rq:wip:q", 0, -1)
        sync_redis.zadd("rq:wip:q", dict.fromkeys(members, 1))
        async with run_worker(**ARQ, ctx={"started": asyncio.Event()}, max_jobs=250, lease_seconds=600) as other:
            await until(lambda: reply(len(other.running) == 250))


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
        await until(lambda: reply(place_of(sync_redis, "retaken") == ["finished", "finished"]))
        await until(lambda: reply(not sync_redis.exists("rq:scheduled:q", "rq:wip:q", "rq:queue:q")))


async def test_a_job_that_kills_each_worker_fails_at_last(
    queue: Queue, run_worker: RunWorker, redis_url: str, until: Until
) -> None:
    """The third worker that is lost is the last: the fourth, in the test's own process, only writes it down."""
    job = queue.enqueue(f.kill_worker, job_id="one", retry=RQRetry(max=9))
    for _ in range(3):
        async with worker_process(redis_url) as process:
            assert await process.wait() == -signal.SIGKILL
    async with run_worker(**PLAIN, lease_seconds=1):
        await until(lambda: reply(job.is_failed))
    assert place_of(queue.connection, "one") == ["failed", "failed"]
    result = job.latest_result()
    assert result is not None
    assert "3 workers were lost" in (result.exc_string or "")
    assert queue.connection.zcard("rq:wip:q") == 0
    assert list(queue.connection.scan_iter("rq:execution*")) == []


async def test_one_job_that_kills_its_workers_takes_no_other_down_with_it(
    queue: Queue, redis_url: str, until: Until
) -> None:
    """Nine others are in work each time; they come back apart, and those suspected as much as it one at a time."""
    client = queue.connection
    queue.enqueue(f.kill_worker_with_others, 2, job_id="killer")
    others = [queue.enqueue(f.take_a_second) for _ in range(9)]

    def all_ended() -> bool:
        return client.zcard("rq:finished:q") + client.zcard("rq:failed:q") == 10

    async with asyncio.timeout(60):
        while not all_ended():
            async with worker_process(redis_url) as process:
                await until(lambda: reply(process.returncode is not None or all_ended()))
    assert place_of(client, "killer") == ["failed", "failed"]
    assert {job.get_status() for job in others} == {JobStatus.FINISHED}


async def test_a_worker_runs_one_suspect_at_a_time(queue: Queue, run_worker: RunWorker, until: Until) -> None:
    client = queue.connection
    for job_id in ("one", "two", "three"):
        queue.enqueue(f.tell_and_wait_in_thread, job_id=job_id)
        client.hset(f"rq:job:{job_id}", "crashes", 2)
    async with run_worker(**PLAIN) as worker:
        for done in range(3):
            other = queue.enqueue(f.nothing)
            await until(lambda n=done: reply(client.llen("test:started") > n))  # type: ignore[misc]
            await until(lambda: reply(other.is_finished))  # noqa: B023 - called before the next turn
            assert sum(b"crashes" in each.raw for each in worker.running.values()) == 1
            client.rpush("test:go", "go")
        await until(lambda: reply(client.zcard("rq:finished:q") == 6))


async def test_a_job_that_got_through_is_no_suspect_any_more(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    options: dict[str, dict[str, Any]] = {
        "finished": {},
        "failed": {"result_ttl": 7},
        "repeated": {"repeat": Repeat(times=3, interval=60)},
    }
    for job_id, each in options.items():
        queue.enqueue(f.fail if job_id == "failed" else f.nothing, job_id=job_id, **each)
        queue.connection.hset(f"rq:job:{job_id}", "crashes", 1)
    async with run_worker(**PLAIN) as worker:
        await until(lambda: reply(not queue.count and not worker.running))
    for job_id in options:
        assert queue.connection.hget(f"rq:job:{job_id}", "crashes") in {None, b"0"}


async def test_a_delayed_retry_that_was_cut_off_between_rqs_two_writes_runs_again(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    """Its status says scheduled, and only the lease of its run knows of it."""
    job = queue.enqueue(f.nothing, job_id="one")
    lose_worker(queue, "one")
    queue.connection.hset("rq:job:one", "status", "scheduled")
    async with run_worker(**PLAIN, lease_seconds=1):
        await until(lambda: reply(job.is_finished))


async def test_a_record_with_odd_fields_is_taken_back_as_any_other(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    jobs = [queue.enqueue(f.nothing, job_id=job_id) for job_id in ("odd", "other")]
    lose_worker(queue, "odd", "other")
    queue.connection.hset("rq:job:odd", mapping={"crashes": "x", "job_try": "y"})
    queue.connection.set("rq:executions:odd", "no registry")
    async with run_worker(**PLAIN, lease_seconds=1):
        await until(lambda: reply(all(job.is_finished for job in jobs)))


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
            await until(lambda: reply(place_of(sync_redis, "one")[0] == "failed"))
        (running,) = slow.running.values()
        running.cancel()
        await until(lambda: reply(not slow.running))
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
        await until(lambda: reply(worker.executor.active_count == 0))
        assert len(worker.running) == 1, "it has ended, and nobody knows"
        await asyncio.to_thread(durable_redis.start)
        await until(lambda: reply(not worker.running))
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
        await until(lambda: reply(not worker.running))
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
            await until(lambda: reply(client.zcard("rq:finished:q") == 20 and client.zcard("rq:failed:q") == 1))
            assert place_of(client, "n0") == ["finished", "finished"]
            assert Job.fetch("bad", connection=client, serializer=JSONSerializer).is_failed
            assert_no_run_is_recorded(client)
