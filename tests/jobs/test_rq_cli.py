"""RQ's command line with `AsyncWorker`, as processes of their own."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer
from rq.worker import Worker

from app.jobs import ArqRedis
from tests.jobs import rq_functions as f
from tests.jobs.conftest import reply
from tests.jobs.redis_snapshot import assert_no_run_is_recorded, place_of

Until = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
Process = asyncio.subprocess.Process
Rq = Callable[..., Awaitable[str]]
Starts = Callable[..., Any]
OURS = ("--worker-class", "app.jobs.AsyncWorker")


@pytest.fixture
def queue(sync_redis: redis.Redis) -> Queue:
    return Queue("q", connection=sync_redis)


@pytest.fixture
def starts(redis_url: str) -> Starts:
    """Starts `rq COMMAND --url ... ARGUMENTS`, and ends it with the block."""

    @asynccontextmanager
    async def start(command: str, *arguments: str) -> AsyncIterator[Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rq.cli", command, "--url", redis_url, *arguments,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    return start


@pytest.fixture
def rq(starts: Starts) -> Rq:
    """Runs `rq` to its end; what it printed."""

    async def run(command: str, *arguments: str, code: int = 0) -> str:
        async with starts(command, *arguments) as process, asyncio.timeout(60):
            printed, _ = await process.communicate()
        text: str = printed.decode()
        assert process.returncode == code, text
        return text

    return run


async def test_worker_burst_runs_everything_and_ends(queue: Queue, rq: Rq) -> None:
    jobs = [queue.enqueue(f.add_async, n) for n in range(20)]
    bad = queue.enqueue(f.fail)
    printed = await rq("worker", "q", "--burst", *OURS)
    assert [job.return_value() for job in jobs] == [n + 1 for n in range(20)]
    assert bad.is_failed
    assert "*** Listening on q..." in printed
    assert "ValueError: this one fails" in printed
    assert_no_run_is_recorded(queue.connection)


async def test_worker_takes_all_of_rqs_options(queue: Queue, rq: Rq, tmp_path: Path) -> None:
    low = Queue("low", connection=queue.connection)
    jobs = [queue.enqueue(f.nothing, job_id="one"), low.enqueue(f.fail, job_id="two")]
    await rq(
        "worker", "q", "low", "--burst", *OURS, "--name", "named", "--results-ttl", "222", "--worker-ttl", "300",
        "--maintenance-interval", "60", "--job-monitoring-interval", "5", "--with-scheduler", "--quiet",
        "--dequeue-strategy", "round_robin", "--disable-job-desc-logging", "--pid", str(tmp_path / "pid"),
        "--exception-handler", "tests.jobs.rq_functions.note_in_handler",
    )  # fmt: skip
    for job in jobs:
        job.refresh()
    assert [job.worker_name for job in jobs] == ["named", "named"]
    assert 215 < queue.connection.ttl(jobs[0].key) <= 222
    assert queue.connection.lrange("test:notes", 0, -1) == [b"handler two ValueError"]
    assert int((tmp_path / "pid").read_text()) > 0


async def test_worker_ends_after_so_many_jobs(queue: Queue, rq: Rq) -> None:
    jobs = [queue.enqueue(f.nothing) for _ in range(5)]
    await rq("worker", "q", *OURS, "--max-jobs", "3")
    assert [job.is_finished for job in jobs] == [True, True, True, False, False]
    assert queue.job_ids == [job.id for job in jobs[3:]]


async def test_worker_ends_when_it_was_idle_for_so_long(queue: Queue, rq: Rq) -> None:
    job = queue.enqueue(f.nothing)
    await rq("worker", "q", *OURS, "--max-idle-time", "1")
    assert job.is_finished


async def test_worker_with_the_json_serializer_runs_our_jobs_and_rqs(
    pool: ArqRedis, sync_redis: redis.Redis, rq: Rq
) -> None:
    ours = await pool.enqueue_job(f"{f.__name__}.arq_multiply", 6, 7)
    assert ours is not None
    job = Queue("q", connection=sync_redis, serializer=JSONSerializer).enqueue(f.add, 1)
    await rq("worker", "q", "--burst", *OURS, "--serializer", "rq.serializers.JSONSerializer")
    assert await ours.result(5) == 42
    assert job.return_value() == 2


async def test_rq_enqueue_feeds_the_worker(queue: Queue, rq: Rq) -> None:
    await rq("enqueue", "--queue", "q", "--job-id", "one", "tests.jobs.rq_functions.add_async", "%40", "right%=2")
    await rq("worker", "q", "--burst", *OURS)
    job = queue.fetch_job("one")
    assert job is not None
    assert job.return_value() == 42


async def test_worker_pool_runs_everything_and_ends(queue: Queue, rq: Rq) -> None:
    jobs = [queue.enqueue(f.whoami_async) for _ in range(40)]
    await rq("worker-pool", "q", "--burst", "--num-workers", "2", *OURS)
    assert [job.return_value()[0] for job in jobs] == [job.id for job in jobs]
    assert_no_run_is_recorded(queue.connection)


async def test_worker_pool_ends_with_its_workers_when_told(
    queue: Queue, starts: Starts, until: Until, sync_redis: redis.Redis
) -> None:
    async with starts("worker-pool", "q", "--num-workers", "2", *OURS) as process, asyncio.timeout(60):
        await until(lambda: reply(Worker.count(connection=sync_redis) == 2))
        job = queue.enqueue(f.add, 1)
        await until(lambda: reply(job.is_finished))
        process.terminate()
        await process.communicate()
    assert process.returncode == 0
    assert Worker.count(connection=sync_redis) == 0


async def test_info_shows_queues_and_workers(
    queue: Queue, starts: Starts, rq: Rq, *, until: Until, sync_redis: redis.Redis
) -> None:
    queue.enqueue(f.nothing)
    queue.enqueue(f.fail)
    queue.enqueue(f.tell_and_wait)
    Queue("other", connection=sync_redis).enqueue(f.nothing)
    async with starts("worker", "q", "--name", "seen", *OURS) as process:
        await until(lambda: reply(sync_redis.zcard("rq:failed:q") and sync_redis.zcard("rq:finished:q")))
        await until(lambda: reply(sync_redis.llen("test:started")))
        raw = await rq("info", "--raw", *OURS)
        pretty = await rq("info", "q", *OURS)
        stock = await rq("info", "--raw", "--only-workers")
        assert process.returncode is None
    assert "queue q 0, 1 executing, 1 finished, 1 failed" in raw
    assert "queue other 1, 0 executing, 0 finished, 0 failed" in raw
    assert raw.count("worker seen (") == 1
    assert "busy q. jobs: 1 finished, 1 failed" in raw
    assert "0, 1 executing, 1 finished, 1 failed" in pretty
    assert "1 workers, 1 queues" in pretty
    assert "worker seen (" in stock


async def test_requeue_runs_failed_jobs_again(queue: Queue, rq: Rq) -> None:
    jobs = [queue.enqueue(f.fail_once) for _ in range(3)]
    await rq("worker", "q", "--burst", *OURS)
    assert all(job.is_failed for job in jobs)
    assert "Requeueing 3 jobs" in await rq("requeue", "--queue", "q", "--all")
    await rq("worker", "q", "--burst", *OURS)
    assert all(job.is_finished for job in jobs)
    assert "Nothing to do" in await rq("requeue", "--queue", "q", "--all")


async def test_suspend_holds_a_running_worker_and_resume_lets_it_go_on(
    queue: Queue, starts: Starts, rq: Rq, until: Until
) -> None:
    async with starts("worker", "q", *OURS) as process:
        first = queue.enqueue(f.nothing)
        await until(lambda: reply(first.is_finished))
        await rq("suspend")
        second = queue.enqueue(f.nothing)
        assert await asyncio.to_thread(second.latest_result, 1) is None
        assert second.is_queued
        assert process.returncode is None
        await rq("resume")
        await until(lambda: reply(second.is_finished))


async def test_a_worker_that_starts_while_suspended_says_so_and_ends(queue: Queue, rq: Rq) -> None:
    await rq("suspend")
    assert "RQ is currently suspended" in await rq("worker", "q", *OURS, code=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_jobs_end_and_takes_no_more(
    queue: Queue, starts: Starts, until: Until, sync_redis: redis.Redis, *, number: signal.Signals
) -> None:
    async with starts("worker", "q", *OURS) as process, asyncio.timeout(30):
        job = queue.enqueue(f.tell_and_wait_in_thread)
        await until(lambda: reply(sync_redis.llen("test:started")))
        process.send_signal(number)
        await _printed(process, "warm shutdown requested")
        later = queue.enqueue(f.nothing, job_id="later")
        assert await asyncio.to_thread(later.latest_result, 1) is None
        sync_redis.rpush("test:go", "go")
        await process.communicate()
    assert process.returncode == 0
    assert job.return_value() == "went"
    assert place_of(sync_redis, "later") == ["queued", "queue"]
    assert_no_run_is_recorded(sync_redis)
    assert Worker.count(connection=sync_redis) == 0


async def test_a_second_signal_gives_running_jobs_back_at_once(
    queue: Queue, starts: Starts, until: Until, sync_redis: redis.Redis
) -> None:
    async with starts("worker", "q", *OURS) as process, asyncio.timeout(30):
        queue.enqueue(f.tell_and_wait, job_id="one")
        await until(lambda: reply(sync_redis.llen("test:started")))
        process.terminate()
        await _printed(process, "warm shutdown requested")
        assert place_of(sync_redis, "one") == ["started", "wip"]

        with pytest.raises(TimeoutError):  # it waits for its job; and RQ takes two signals within a second for one
            await asyncio.wait_for(process.wait(), 1.2)
        process.terminate()
        await process.communicate()
    assert process.returncode == 0
    assert place_of(sync_redis, "one") == ["queued", "queue"]
    assert_no_run_is_recorded(sync_redis)


async def _printed(process: Process, text: str) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        if text in line.decode():
            return
    raise AssertionError(f"{text!r} was never printed")
