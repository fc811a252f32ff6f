"""Stock RQ on one side, this package on the other: clients, workers, commands and tools that do not know of it."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Queue, Repeat
from rq.job import Job, JobStatus
from rq.rate_limit import RateLimit
from rq.registry import FailedJobRegistry, FinishedJobRegistry, ScheduledJobRegistry
from rq.results import Result
from rq.serializers import DefaultSerializer, JSONSerializer
from rq.worker import SimpleWorker

from app.jobs import ArqRedis, AsyncWorker, JobExecutionFailed, JobRequest, RedisSettings, create_pool
from app.jobs import Job as ArqJob
from app.jobs import JobStatus as ArqStatus
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, reply


@pytest.fixture
def stock_burst(sync_redis: redis.Redis) -> Callable[..., SimpleWorker]:
    def run(*, with_scheduler: bool = False, max_jobs: int | None = None) -> SimpleWorker:
        worker = SimpleWorker(["q"], connection=sync_redis, serializer=JSONSerializer)
        worker.work(burst=max_jobs is None, with_scheduler=with_scheduler, max_jobs=max_jobs)
        return worker

    return run


@pytest.fixture
def with_arq(redis_url: str) -> Iterator[Callable[[Callable[[ArqRedis], Awaitable[Any]]], Any]]:
    """Runs a coroutine with a pool of ours, in a loop of its own: stock workers want the main thread."""
    with asyncio.Runner() as runner:

        async def call(act: Callable[[ArqRedis], Awaitable[Any]]) -> Any:
            settings = RedisSettings.from_dsn(redis_url)
            pool = await create_pool(settings, default_queue_name="q", serializer="json")
            try:
                return await act(pool)
            finally:
                await pool.aclose()

        yield lambda act: runner.run(call(act))


def result_of(job: Job) -> Result:
    found = job.latest_result()
    assert found is not None
    return found


# RQ's client, our worker


@pytest.mark.parametrize("serializer", [DefaultSerializer, JSONSerializer])
@pytest.mark.parametrize("function", [f.add, f.add_async])
def test_rqs_client_reads_all_of_a_success(
    sync_redis: redis.Redis, burst: Callable[..., AsyncWorker], serializer: Any, function: Any
) -> None:
    queue = Queue("q", connection=sync_redis, serializer=serializer)
    made = queue.enqueue(function, 40, right=2)
    worker = burst(serializer=serializer, name="ours")
    job = Job.fetch(made.id, connection=sync_redis, serializer=serializer)
    assert job.get_status() is JobStatus.FINISHED
    assert job.return_value() == 42
    assert job.worker_name == worker.name == "ours"
    assert job.enqueued_at
    assert job.started_at
    assert job.ended_at
    assert job.enqueued_at <= job.started_at <= job.ended_at
    result = result_of(job)
    assert (result.type, result.worker_name) == (Result.Type.SUCCESSFUL, "ours")
    assert job.id in FinishedJobRegistry("q", connection=sync_redis, serializer=serializer)
    assert job.get_executions() == []
    assert queue.count == 0


@pytest.mark.parametrize("function", [f.fail, f.fail_async])
def test_rqs_client_reads_all_of_a_failure(
    queue: Queue, burst: Callable[..., AsyncWorker], function: Any, sync_redis: redis.Redis
) -> None:
    made = queue.enqueue(function, "with this text")
    burst()
    job = Job.fetch(made.id, connection=sync_redis)
    assert job.get_status() is JobStatus.FAILED
    result = result_of(job)
    assert result.type is Result.Type.FAILED
    assert result.exc_string is not None
    assert result.exc_string.startswith("Traceback (most recent call last):")
    assert f"in {function.__name__}" in result.exc_string
    assert result.exc_string.strip().endswith("ValueError: with this text")
    assert job.id in FailedJobRegistry("q", connection=sync_redis)


async def test_rqs_client_waits_for_a_result(queue: Queue, run_worker: RunWorker) -> None:
    job = queue.enqueue(f.add_async, 1)
    waiting = asyncio.create_task(asyncio.to_thread(job.latest_result, 10))
    async with run_worker(**PLAIN):
        result = await waiting
    assert result is not None
    assert result.return_value == 2


def test_a_failed_job_that_is_requeued_runs_again(
    queue: Queue, burst: Callable[..., AsyncWorker], sync_redis: redis.Redis
) -> None:
    job = queue.enqueue(f.fail_once)
    burst()
    assert job.get_status() is JobStatus.FAILED
    FailedJobRegistry("q", connection=sync_redis).requeue(job.id)
    assert job.get_status() is JobStatus.QUEUED
    burst()
    assert job.get_status() is JobStatus.FINISHED
    assert job.return_value(refresh=True) == "then it works"
    assert len(job.results()) == 2


def test_a_job_that_is_cancelled_before_it_starts_never_runs(
    queue: Queue, burst: Callable[..., AsyncWorker], sync_redis: redis.Redis
) -> None:
    cancelled, other = (queue.enqueue(f.count, "test:ran") for _ in range(2))
    cancelled.cancel()
    burst()
    assert cancelled.get_status() is JobStatus.CANCELED
    assert sync_redis.hgetall("test:ran") == {other.id.encode(): b"1"}


async def test_a_job_that_is_cancelled_while_it_runs_is_ended_and_stays_cancelled(
    queue: Queue, run_worker: RunWorker, until: Until, sync_redis: redis.Redis
) -> None:
    async with run_worker(**PLAIN, lease_seconds=0.6) as worker:
        job = queue.enqueue(f.tell_and_wait)
        await until(lambda: reply(sync_redis.llen("test:started")))
        job.cancel()
        await until(lambda: reply(not worker.running))
    assert job.get_status() is JobStatus.CANCELED
    assert job.latest_result() is None
    assert not list(sync_redis.scan_iter("rq:execution*"))
    assert sync_redis.zcard("rq:wip:q") == 0


async def test_what_rq_schedules_runs_when_it_is_due(queue: Queue, run_worker: RunWorker, until: Until) -> None:
    async with run_worker(**PLAIN):
        job = queue.enqueue_in(timedelta(seconds=1), f.add, 1)
        assert job.get_status() is JobStatus.SCHEDULED
        due = ScheduledJobRegistry("q", connection=queue.connection).get_scheduled_time(job)
        await until(lambda: reply(job.is_finished))
    job.refresh()
    assert job.started_at is not None
    assert due <= job.started_at


def _chained(queue: Queue) -> None:
    job = None
    for _ in range(150):
        job = queue.enqueue(f.nothing, depends_on=job)


def _rate_limited(queue: Queue) -> None:
    for _ in range(150):
        queue.enqueue(f.nothing, rate_limit=RateLimit("one at a time", 1))


def _repeated(queue: Queue) -> None:
    queue.enqueue(f.nothing, repeat=Repeat(times=149))


@pytest.mark.parametrize("enqueue", [_chained, _rate_limited, _repeated])
def test_a_burst_runs_what_comes_while_a_job_is_being_settled(
    queue: Queue, burst: Callable[..., AsyncWorker], enqueue: Callable[[Queue], None]
) -> None:
    """Each job comes into the queue as the one before is settled: an empty claim just then is no end."""
    enqueue(queue)
    worker = burst(max_jobs=3)
    assert worker.jobs_complete == 150


@pytest.mark.parametrize("function", [f.whoami, f.whoami_async])
async def test_each_of_many_jobs_at_once_sees_itself(
    queue: Queue, run_worker: RunWorker, until: Until, function: Any
) -> None:
    jobs = [queue.enqueue(function) for _ in range(20)]
    async with run_worker(**PLAIN, max_jobs=20, name="sees"):
        await until(lambda: reply(all(job.is_finished for job in jobs)))
    assert [job.return_value() for job in jobs] == [(job.id, "sees") for job in jobs]


@pytest.mark.parametrize("function", [f.too_long, f.too_long_async])
def test_the_record_of_a_timeout_shows_where_the_function_was(
    queue: Queue, burst: Callable[..., AsyncWorker], function: Any
) -> None:
    job = queue.enqueue(function, job_timeout=1)
    burst()
    text = result_of(job).exc_string
    assert text is not None
    assert text.strip().endswith("Task exceeded maximum timeout value (1 seconds)")
    assert f"in {function.__name__}" in text


# our client, stock workers


def test_a_stock_worker_runs_what_our_client_enqueued(
    with_arq: Any, stock_burst: Any, sync_redis: redis.Redis
) -> None:
    async def enqueue(pool: ArqRedis) -> None:
        assert await pool.enqueue_job(f"{f.__name__}.arq_multiply", 6, right=7, _job_id="good")
        assert await pool.enqueue_job(f"{f.__name__}.arq_fail", _job_id="bad")
        assert await pool.enqueue_job("no.such.function", _job_id="unknown")

    async def read(pool: ArqRedis) -> None:
        good, bad, unknown = (pool_job(pool, job_id) for job_id in ("good", "bad", "unknown"))
        assert await good.result(5) == 42
        found = await good.result_info()
        assert found is not None
        assert (found.success, found.result, found.kwargs) == (True, 42, {"right": 7})
        assert found.function == f"{f.__name__}.arq_multiply"
        with pytest.raises(JobExecutionFailed, match="canary of arq's failure"):
            await bad.result(5)
        with pytest.raises(JobExecutionFailed, match=r"function 'no\.such\.function' not found"):
            await unknown.result(5)

    with_arq(enqueue)
    stock_burst()
    with_arq(read)
    job = Job.fetch("good", connection=sync_redis, serializer=JSONSerializer)
    assert job.return_value() == 42
    assert job.get_status() is JobStatus.FINISHED
    assert Job.fetch("bad", connection=sync_redis, serializer=JSONSerializer).get_status() is JobStatus.FAILED


def pool_job(pool: ArqRedis, job_id: str) -> Any:
    return ArqJob(job_id, pool, "q")


def test_arqs_retry_runs_again_under_a_stock_worker(with_arq: Any, stock_burst: Any) -> None:
    name = f"{f.__name__}.arq_retry"
    with_arq(lambda pool: pool.enqueue_job(name, 3, _job_id="again"))
    stock_burst()
    assert with_arq(lambda pool: pool_job(pool, "again").result(5)) == 3


def test_arqs_retry_with_a_delay_waits_for_a_stock_scheduler(
    with_arq: Any, stock_burst: Any, sync_redis: redis.Redis
) -> None:
    name = f"{f.__name__}.arq_retry"
    with_arq(lambda pool: pool.enqueue_job(name, 2, defer=1, _job_id="later"))
    stock_burst()
    assert ScheduledJobRegistry("q", connection=sync_redis).get_job_ids() == ["later"]
    assert with_arq(lambda pool: pool_job(pool, "later").status()) is ArqStatus.deferred
    stock_burst(with_scheduler=True, max_jobs=1)
    assert with_arq(lambda pool: pool_job(pool, "later").result(5)) == 2


def test_a_deferred_job_runs_under_a_stock_scheduler(with_arq: Any, stock_burst: Any) -> None:
    name = f"{f.__name__}.arq_multiply"
    with_arq(lambda pool: pool.enqueue_job(name, 2, 4, _job_id="later", _defer_by=1))
    stock_burst(with_scheduler=True, max_jobs=1)
    assert with_arq(lambda pool: pool_job(pool, "later").result(5)) == 8


def test_arqs_plain_failure_is_not_tried_again_by_a_stock_worker(
    with_arq: Any, stock_burst: Any, sync_redis: redis.Redis
) -> None:
    with_arq(lambda pool: pool.enqueue_job(f"{f.__name__}.arq_fail", _job_id="bad"))
    stock_burst()
    job = Job.fetch("bad", connection=sync_redis, serializer=JSONSerializer)
    assert len(job.results()) == 1
    assert sync_redis.llen("rq:queue:q") == 0


def test_a_job_goes_from_a_stock_worker_to_ours_and_back(
    with_arq: Any, stock_burst: Any, burst: Callable[..., AsyncWorker], sync_redis: redis.Redis
) -> None:
    with_arq(lambda pool: pool.enqueue_job(f"{f.__name__}.arq_fail", _job_id="bad"))
    registry = FailedJobRegistry("q", connection=sync_redis, serializer=JSONSerializer)
    job = Job.fetch("bad", connection=sync_redis, serializer=JSONSerializer)
    stock_burst()
    registry.requeue("bad")
    burst(serializer="json", name="ours")
    assert result_of(job).worker_name == "ours"
    registry.requeue("bad")
    stock_burst()
    assert result_of(job).worker_name != "ours"
    assert [each.type for each in job.results()] == [Result.Type.FAILED] * 3
    assert registry.get_job_ids() == ["bad"]


async def test_both_kinds_of_worker_share_a_queue_and_each_job_runs_once(
    *, redis_url: str, run_worker: RunWorker, queue: Queue, sync_redis: redis.Redis, until: Until
) -> None:
    stock = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rq.cli", "worker", "q", "-u", redis_url, "-w", "rq.worker.SimpleWorker",
        "--name", "stock", env={**os.environ, "PYTHONPATH": str(Path.cwd())}, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until(lambda: reply(sync_redis.exists("rq:worker:stock")))
        async with run_worker(**PLAIN, name="ours"):
            data = [Queue.prepare_data(f.count, ("test:ran",)) for _ in range(300)]
            queue.enqueue_many(data)
            await until(lambda: reply(FinishedJobRegistry("q", connection=sync_redis).count == 300))
        assert sync_redis.hlen("test:ran") == 300
        assert set(sync_redis.hvals("test:ran")) == {b"1"}
    finally:
        stock.terminate()
        await stock.wait()


async def test_many_of_our_jobs_and_rqs_in_one_worker(
    *, pool: ArqRedis, queue: Queue, run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    json_queue = Queue("q", connection=sync_redis, serializer=JSONSerializer)
    name = f"{f.__name__}.arq_multiply"
    async with run_worker(functions=[f.add, f.arq_multiply]):
        ours = await pool.enqueue_jobs([JobRequest(name, (n, 2)) for n in range(50)])
        rqs = [json_queue.enqueue(f.add, n, 2) for n in range(50)]
        assert [await job.result(20) for job in ours if job] == [2 * n for n in range(50)]
        await until(lambda: reply(all(job.is_finished for job in rqs)))
    assert [job.return_value() for job in rqs] == [n + 2 for n in range(50)]
