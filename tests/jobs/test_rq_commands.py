"""RQ's commands to a worker, and what RQ's tools see of it."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
import redis
from rq import Callback, Queue
from rq.command import (
    send_kill_horse_command,
    send_shutdown_command,
    send_stop_execution_command,
    send_stop_job_command,
)
from rq.job import JobStatus
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.suspension import resume, suspend
from rq.worker import Worker

from app.jobs import AsyncWorker, RedisSettings
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, reply

# RQ's commands and what RQ shows of a worker


@pytest.mark.parametrize("function", [f.tell_and_wait, f.tell_and_wait_in_thread])
async def test_stop_job_ends_a_job_as_stopped(
    *, queue: Queue, run_worker: RunWorker, until: Until, sync_redis: redis.Redis, function: Any
) -> None:
    async with run_worker(**PLAIN) as worker:
        job = queue.enqueue(function)
        await until(lambda: reply(sync_redis.llen("test:started")))
        send_stop_job_command(sync_redis, job.id)
        await until(lambda: reply(not worker.running))
        sync_redis.rpush("test:go", "lets the thread end")
    assert job.get_status() is JobStatus.STOPPED
    result = job.latest_result()
    assert result is not None
    assert (result.exc_string or "").startswith("Job stopped by user")
    assert job.id in FailedJobRegistry("q", connection=sync_redis)


async def test_stop_execution_ends_that_execution_alone(
    queue: Queue, run_worker: RunWorker, until: Until, sync_redis: redis.Redis
) -> None:
    async with run_worker(**PLAIN) as worker:
        victim, other = (queue.enqueue(f.tell_and_wait) for _ in range(2))
        await until(lambda: reply(sync_redis.llen("test:started") == 2))
        (execution,) = victim.get_executions()
        assert execution.worker_name == worker.name
        send_stop_execution_command(sync_redis, victim.id, execution.id)
        await until(lambda: reply(len(worker.running) == 1))
        assert victim.get_status() is JobStatus.STOPPED
        assert other.get_status() is JobStatus.STARTED


async def test_kill_horse_ends_what_runs_and_the_worker_lives_on(
    queue: Queue, run_worker: RunWorker, until: Until, sync_redis: redis.Redis
) -> None:
    async with run_worker(**PLAIN) as worker:
        jobs = [queue.enqueue(f.tell_and_wait) for _ in range(2)]
        await until(lambda: reply(sync_redis.llen("test:started") == 2))
        send_kill_horse_command(sync_redis, worker.name)
        await until(lambda: reply(not worker.running))
        assert {job.get_status() for job in jobs} <= {JobStatus.STOPPED, JobStatus.FAILED}
        assert sorted(FailedJobRegistry("q", connection=sync_redis).get_job_ids()) == sorted(job.id for job in jobs)
        later = queue.enqueue(f.add, 1)
        await until(lambda: reply(later.is_finished))


async def test_the_shutdown_command_ends_the_worker_and_gives_its_jobs_back(
    queue: Queue, redis_url: str, until: Until, sync_redis: redis.Redis
) -> None:
    worker = AsyncWorker(
        ["q"], redis_settings=RedisSettings.from_dsn(redis_url), shutdown_grace_seconds=0.1, name="leaves"
    )
    running = asyncio.create_task(worker.run())
    job = queue.enqueue(f.tell_and_wait)
    await until(lambda: reply(sync_redis.llen("test:started")))
    send_shutdown_command(sync_redis, "leaves")
    async with asyncio.timeout(10):
        assert await running == 1
    assert job.get_status() is JobStatus.QUEUED
    assert queue.job_ids == [job.id]
    assert Worker.all(connection=sync_redis) == []


@pytest.mark.parametrize("nonsense", ["junk", "[]", '"stop-job"', '{"command": []}', "[" * 100_000])
async def test_a_command_that_is_none_is_ignored(
    run_worker: RunWorker, until: Until, sync_redis: redis.Redis, nonsense: str
) -> None:
    async with run_worker(**PLAIN, name="w") as worker:
        await until(lambda: reply(sync_redis.publish("rq:pubsub:w", nonsense)))
        send_shutdown_command(sync_redis, "w")
        await until(lambda: reply(worker.stop_event.is_set()))


async def test_a_suspended_worker_takes_nothing_until_it_is_resumed(
    queue: Queue, run_worker: RunWorker, until: Until, sync_redis: redis.Redis
) -> None:
    suspend(sync_redis)
    async with run_worker(**PLAIN):
        await until(lambda: reply(Worker.all(connection=sync_redis)))
        job = queue.enqueue(f.add, 1)
        assert await asyncio.to_thread(job.latest_result, 1) is None
        assert job.get_status() is JobStatus.QUEUED
        resume(sync_redis)
        await until(lambda: reply(job.is_finished))


def test_a_suspended_burst_ends(queue: Queue, burst: Callable[..., AsyncWorker], sync_redis: redis.Redis) -> None:
    job = queue.enqueue(f.add, 1)
    suspend(sync_redis)
    burst()
    assert job.get_status() is JobStatus.QUEUED


async def test_rq_sees_the_worker_its_state_its_executions_and_its_statistics(
    queue: Queue, run_worker: RunWorker, until: Until, sync_redis: redis.Redis
) -> None:
    async with run_worker(**PLAIN, name="seen", queues=["q", "low"]) as worker:
        for function in (f.nothing, f.add_async, f.fail, f.fail_async):
            queue.enqueue(function, *([1] if function is f.add_async else []))
        await until(lambda: reply(sync_redis.exists("rq:worker:seen")))
        await until(lambda: reply(_seen(sync_redis).failed_job_count == 2))
        await until(lambda: reply(_seen(sync_redis).successful_job_count == 2))
        await until(lambda: reply(_seen(sync_redis).get_state() == "idle"))
        job = queue.enqueue(f.tell_and_wait)
        await until(lambda: reply(sync_redis.llen("test:started")))
        seen = _seen(sync_redis)
        assert seen.get_state() == "busy"
        assert seen.queue_names() == ["q", "low"]
        assert (seen.pid, seen.hostname) == (os.getpid(), worker.hostname)
        assert seen.total_working_time > 0
        assert seen.birth_date is not None
        assert [each.job_id for each in seen.get_current_executions(refresh=True)] == [job.id]
        assert [each.job_id for each in job.get_executions()] == [job.id]
        assert StartedJobRegistry("q", connection=sync_redis).get_job_ids() == [job.id]
        assert Worker.count(connection=sync_redis, queue=Queue("low", connection=sync_redis)) == 1
    assert Worker.all(connection=sync_redis) == []


async def test_a_worker_is_idle_again_after_a_job_that_rqs_code_settled(
    queue: Queue, run_worker: RunWorker, until: Until, sync_redis: redis.Redis
) -> None:
    async with run_worker(**PLAIN, name="seen") as worker:
        job = queue.enqueue(f.add, 1, on_success=Callback(f.note_success))
        await until(lambda: reply(job.is_finished))
        await until(lambda: reply(not worker.running))
        async with asyncio.timeout(3):
            await until(lambda: reply(_seen(sync_redis).get_state() == "idle"))


def _seen(sync_redis: redis.Redis) -> Worker:
    (worker,) = Worker.all(connection=sync_redis)
    assert isinstance(worker, Worker)
    return worker


async def test_a_second_worker_of_the_same_name_is_refused(
    run_worker: RunWorker, redis_url: str, until: Until, sync_redis: redis.Redis
) -> None:
    async with run_worker(**PLAIN, name="same"):
        await until(lambda: reply(sync_redis.exists("rq:worker:same")))
        second = AsyncWorker(["q"], name="same", redis_settings=RedisSettings.from_dsn(redis_url))
        with pytest.raises(ValueError, match="active worker named 'same'"):
            await second.run(burst=True)
