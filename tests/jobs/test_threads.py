"""Functions that are no coroutines: a thread each, at once, which is interrupted and which nobody waits for."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Callback, Queue
from rq.command import send_kill_horse_command, send_stop_job_command

from app.jobs import AsyncWorker
from app.jobs.threads import Threads
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, reply
from tests.jobs.redis_snapshot import place_of

_MANY = 40  # more than asyncio has threads


async def test_as_many_functions_run_at_once_as_there_are_slots_and_rqs_code_does_not_wait_for_them(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    client = queue.connection
    jobs = [queue.enqueue(f.tell_and_wait_in_thread) for _ in range(_MANY)]
    async with run_worker(**PLAIN, max_jobs=_MANY + 1):
        await until(lambda: reply(client.llen("test:started") == _MANY))
        other = queue.enqueue(f.add_async, 1, on_success=Callback(f.note_success))
        await until(lambda: reply(other.is_finished))
        client.rpush("test:go", *["go"] * _MANY)
        await until(lambda: reply(all(job.is_finished for job in jobs)))


def stop(client: redis.Redis, worker: AsyncWorker) -> None:
    send_stop_job_command(client, "one")


def kill_horse(client: redis.Redis, worker: AsyncWorker) -> None:
    send_kill_horse_command(client, worker.name)


def shut_down(_client: redis.Redis, worker: AsyncWorker) -> None:
    worker.request_shutdown()


def take_away(client: redis.Redis, worker: AsyncWorker) -> None:
    client.delete("rq:wip:q")


@pytest.mark.parametrize("act", [stop, kill_horse, shut_down, take_away])
async def test_whatever_ends_a_job_ends_its_function(
    queue: Queue, run_worker: RunWorker, until: Until, act: Any
) -> None:
    client = queue.connection
    async with run_worker(**PLAIN, lease_seconds=0.6) as worker:
        queue.enqueue(f.take_steps, job_id="one")
        await until(lambda: reply(client.llen("test:started")))
        act(client, worker)
        await until(lambda: reply(client.lrange("test:notes", 0, -1) == [b"ended by CancelledError"]))


async def test_a_function_may_catch_its_time_limit_as_with_rq(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    job = queue.enqueue(f.return_at_timeout, job_timeout=1)
    async with run_worker(**PLAIN):
        await until(lambda: reply(job.is_finished))
    assert job.return_value() == "what there was by then"


async def test_a_function_that_cannot_be_interrupted_fails_at_its_limit_all_the_same(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    job = queue.enqueue(f.hang, job_timeout=1)
    async with run_worker(**PLAIN, max_jobs=1):
        await until(lambda: reply(job.is_failed))
        other = queue.enqueue(f.add, 1)
        await until(lambda: reply(other.is_finished))


async def test_a_function_that_never_returns_does_not_keep_the_process(
    queue: Queue, redis_url: str, until: Until
) -> None:
    code = (
        "from app.jobs import AsyncWorker, RedisSettings;"
        f"settings = RedisSettings.from_dsn({redis_url!r});"
        "AsyncWorker(['q'], redis_settings=settings, shutdown_grace_seconds=0.1).work()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    try:
        for _ in range(10):
            queue.enqueue(f.hang)
        await until(lambda: reply(queue.connection.llen("test:started") == 10))
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert [place_of(queue.connection, job_id) for job_id in queue.job_ids] == [["queued", "queue"]] * 10


# the threads by themselves


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads()
    yield threads
    threads.close()


async def test_an_interruption_that_comes_too_late_hits_nobody(threads: Threads) -> None:
    async def call(number: int) -> int:
        return await threads.run_job(lambda: sum(range(number)), lambda: asyncio.CancelledError)

    for number in range(1000):
        task = asyncio.create_task(call(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() or task.result() == sum(range(number))
        assert await threads.run(lambda: "whole") == "whole"


async def test_a_thread_is_used_again(threads: Threads) -> None:
    assert len({await threads.run(threading.get_ident) for _ in range(100)}) == 1


async def test_what_was_cancelled_is_waited_for_at_the_end_but_not_for_ever(threads: Threads) -> None:
    go = threading.Event()
    for _ in range(2):
        task = asyncio.create_task(threads.run(go.wait))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    await threads.finish(0.01)
    finishing = asyncio.create_task(threads.finish(60))
    await asyncio.sleep(0)
    assert not finishing.done()
    go.set()
    async with asyncio.timeout(10):
        await finishing
