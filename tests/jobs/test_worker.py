"""AsyncWorker against a real Redis: what runs, how it ends, what it leaves."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Queue
from rq import Worker as StockWorker
from rq.command import send_stop_job_command
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from app.jobs import (
    ArqRedis,
    AsyncWorker,
    JobExecutionFailed,
    JobRequest,
    JobStatus,
)
from tests.jobs import functions
from tests.jobs.conftest import RunWorker, fetch, reply

Until = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


def text_of(job: RQJob) -> str:
    result = job.latest_result()
    assert result is not None
    return result.exc_string or ""


async def test_a_job_runs_and_its_result_is_waited_for(pool: ArqRedis, run_worker: RunWorker) -> None:
    async with run_worker():
        job = await pool.enqueue_job("multiply", 6, 7)
        assert job is not None
        assert await job.result(10) == 42
        assert await job.status() is JobStatus.complete
        info = await job.result_info()
        assert info is not None
        assert (info.success, info.function, info.args, info.job_try) == (True, "multiply", (6, 7), 1)
        assert info.start_time is not None
        assert info.finish_time is not None
        assert info.start_time <= info.finish_time


async def test_a_failure_is_recorded_with_its_traceback(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    async with run_worker():
        job = await pool.enqueue_job("fail_async", _job_id="bad")
        assert job is not None
        with pytest.raises(JobExecutionFailed, match="canary of the failure"):
            await job.result(10)
    stored = fetch(sync_redis, "bad")
    assert stored.get_status() is RQStatus.FAILED
    assert "fail_async" in text_of(stored)
    assert "bad" in FailedJobRegistry("q", connection=sync_redis)


async def test_as_many_jobs_run_at_once_as_there_are_slots(pool: ArqRedis, run_worker: RunWorker) -> None:
    async with run_worker(max_jobs=20, ctx={"barrier": asyncio.Barrier(20)}):
        jobs = await pool.enqueue_jobs([JobRequest("meet") for _ in range(20)])
        assert len({await job.result(20) for job in jobs if job}) == 1


async def test_no_more_jobs_run_at_once_than_there_are_slots(
    pool: ArqRedis, run_worker: RunWorker, until: Until
) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(max_jobs=3, ctx=ctx) as worker:
        await pool.enqueue_jobs([JobRequest("forever") for _ in range(5)])
        await until(lambda: reply(len(worker.running) == 3))
        assert await pool.llen("rq:queue:q") == 2
    assert await pool.llen("rq:queue:q") == 5, "what was given back waits again"


async def test_retry_runs_again_and_counts(pool: ArqRedis, run_worker: RunWorker) -> None:
    async with run_worker():
        job = await pool.enqueue_job("retry_twice")
        assert job is not None
        assert await job.result(10) == 3


async def test_retry_ends_when_the_tries_are_used_up(pool: ArqRedis, run_worker: RunWorker) -> None:
    async with run_worker(max_tries=2):
        job = await pool.enqueue_job("retry_twice")
        assert job is not None
        with pytest.raises(JobExecutionFailed, match="max 2 retries exceeded"):
            await job.result(10)


async def test_a_job_that_takes_too_long_fails(pool: ArqRedis, run_worker: RunWorker) -> None:
    async with run_worker(ctx={"started": asyncio.Event()}):
        (job,) = await pool.enqueue_jobs([JobRequest("forever", timeout=1)])
        assert job is not None
        with pytest.raises(JobExecutionFailed, match="maximum timeout value"):
            await job.result(10)


async def test_a_deferred_job_runs_when_it_is_due(pool: ArqRedis, run_worker: RunWorker) -> None:
    async with run_worker():
        job = await pool.enqueue_job("multiply", 2, 3, _defer_by=0.3)
        assert job is not None
        assert await job.status() is JobStatus.deferred
        assert await job.result(10) == 6


async def test_stop_job_cancels_just_that_task(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(ctx=ctx) as worker:
        await pool.enqueue_job("forever", _job_id="other")
        await pool.enqueue_job("forever", _job_id="victim")
        async with asyncio.timeout(10):
            while len(worker.running) < 2:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(send_stop_job_command, sync_redis, "victim", JSONSerializer)
        async with asyncio.timeout(10):
            while len(worker.running) > 1:
                await asyncio.sleep(0.01)
        assert fetch(sync_redis, "victim").get_status() is RQStatus.STOPPED
        assert fetch(sync_redis, "other").get_status() is RQStatus.STARTED


async def test_abort_of_a_running_job_is_true(pool: ArqRedis, run_worker: RunWorker) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(ctx=ctx):
        job = await pool.enqueue_job("forever")
        assert job is not None
        async with asyncio.timeout(10):
            await ctx["started"].wait()
        assert await job.abort(timeout=10) is True


async def test_abort_of_a_waiting_job_times_out_until_a_worker_records_it(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    job = await pool.enqueue_job("multiply", 1, 1, _job_id="waiting", _defer_by=60)
    assert job is not None
    with pytest.raises(TimeoutError):
        await job.abort(timeout=0)
    async with run_worker():
        assert await job.abort(timeout=10) is True
    assert fetch(sync_redis, "waiting").get_status() is RQStatus.STOPPED


async def test_a_function_that_is_not_on_the_list_does_not_run(pool: ArqRedis, run_worker: RunWorker) -> None:
    async with run_worker():
        job = await pool.enqueue_job("os.getcwd")
        assert job is not None
        with pytest.raises(JobExecutionFailed, match=r"function 'os\.getcwd' not found"):
            await job.result(10)


async def test_nor_does_one_that_stock_rq_enqueued(
    run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    job = Queue("q", connection=sync_redis, serializer=JSONSerializer).enqueue("os.getcwd")
    async with run_worker():
        await until(lambda: reply(job.get_status() is RQStatus.FAILED))
    assert "not found" in text_of(job)


@pytest.mark.parametrize("function", [functions.add, functions.add_async])
async def test_what_stock_rq_enqueued_runs(
    run_worker: RunWorker, sync_redis: redis.Redis, until: Until, function: Callable[..., Any]
) -> None:
    queue = Queue("q", connection=sync_redis)
    job = queue.enqueue(function, 40, 2)
    who = queue.enqueue(functions.whoami)
    bad = queue.enqueue(functions.fail)
    async with run_worker(functions=None, serializer=None):
        await until(lambda: reply(bad.get_status() is RQStatus.FAILED))
        await until(lambda: reply(who.is_finished and job.is_finished))
    assert job.return_value() == 42
    assert who.return_value() == who.id
    assert "this one fails" in text_of(bad)


@pytest.mark.parametrize("worker_class", [SimpleWorker, StockWorker])
async def test_a_stock_worker_runs_what_the_adapter_enqueued(
    pool: ArqRedis, sync_redis: redis.Redis, redis_url: str, worker_class: type[SimpleWorker]
) -> None:
    good = await pool.enqueue_job("tests.jobs.functions.multiply", 6, 7, _job_id="good")
    bad = await pool.enqueue_job("tests.jobs.functions.fail_async", _job_id="bad")
    assert good is not None
    assert bad is not None
    await _stock_burst(redis_url, worker_class)
    assert await good.result(5) == 42
    with pytest.raises(JobExecutionFailed, match="canary of the failure"):
        await bad.result(5)
    assert sync_redis.ttl("rq:job:good") > 3500


async def _stock_burst(
    redis_url: str, worker_class: type, queue: str = "q", serializer: str = "rq.serializers.JSONSerializer"
) -> None:
    """The real `rq worker --burst`, as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rq.cli", "worker", queue, "--burst", "-u", redis_url,
        "-S", serializer, "-w", f"{worker_class.__module__}.{worker_class.__qualname__}",
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def test_rqs_command_line_runs_the_async_worker(pool: ArqRedis, redis_url: str) -> None:
    job = await pool.enqueue_job("tests.jobs.functions.multiply", 6, 7)
    assert job is not None
    await _stock_burst(redis_url, AsyncWorker)
    assert await job.result(5) == 42


async def test_it_leaves_the_keys_and_fields_that_a_stock_worker_leaves(
    run_worker: RunWorker, redis_url: str, sync_redis: redis.Redis, until: Until
) -> None:
    def enqueue(queue_name: str) -> list[RQJob]:
        queue = Queue(queue_name, connection=sync_redis)
        return [
            queue.enqueue(functions.add, 1, 2, job_id=f"{queue_name}-ok", result_ttl=600),
            queue.enqueue(functions.fail, job_id=f"{queue_name}-bad", failure_ttl=700),
        ]

    enqueue("stock")
    await _stock_burst(redis_url, SimpleWorker, queue="stock", serializer="rq.serializers.DefaultSerializer")
    jobs = enqueue("ours")
    async with run_worker(queues=["ours"], functions=None, serializer=None):
        await until(lambda: reply(all(job.get_status() in {RQStatus.FINISHED, RQStatus.FAILED} for job in jobs)))

    def left_by(queue_name: str) -> dict[str, object]:
        left: dict[str, object] = {}
        for key in sync_redis.scan_iter(f"*{queue_name}*"):
            name = key.decode().replace(queue_name, "Q")
            if ":worker" in name:
                continue
            kind = sync_redis.type(key)
            ttl = sync_redis.ttl(key)
            left[name] = (kind, ttl if ttl < 0 else round(ttl, -1))
            if kind == b"hash":
                fields = sync_redis.hgetall(key)
                left[name] = (*left[name], sorted(fields.keys() - {b"job_try"}))  # type: ignore[misc]
        return left

    assert left_by("ours") == left_by("stock")


async def test_registries_and_statistics_say_what_happened(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    async with run_worker(name="counter") as worker:
        jobs = await pool.enqueue_jobs([JobRequest("multiply", (n, n), job_id=f"n{n}") for n in range(10)])
        assert [await job.result(10) for job in jobs if job] == [n * n for n in range(10)]
        (seen,) = StockWorker.all(connection=sync_redis, queue=Queue("q", connection=sync_redis))
        assert seen.name == worker.name == "counter"
        assert seen.successful_job_count == 10
    assert FinishedJobRegistry("q", connection=sync_redis).count == 10
    assert StartedJobRegistry("q", connection=sync_redis).get_job_ids(cleanup=False) == []
    assert StockWorker.all(connection=sync_redis) == []
    assert not list(sync_redis.scan_iter("rq:execution*"))
    assert sync_redis.llen("rq:queue:q:intermediate") == 0
