"""Errors of Redis that do not pass: they cost the job or the part that makes them, and nobody else."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, OutOfMemoryError, ReadOnlyError, ResponseError
from rq import Callback, Queue

from app.jobs import AsyncWorker, RedisSettings
from app.jobs.budget import is_away
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, reply
from tests.jobs.redis_snapshot import assert_no_run_is_recorded, place_of

Burst = Callable[..., Awaitable[int]]


@pytest.fixture
def burst(redis_url: str) -> Burst:
    async def run(**options: Any) -> int:
        worker = AsyncWorker(["q"], redis_settings=RedisSettings.from_dsn(redis_url), **(PLAIN | options))
        async with asyncio.timeout(20):
            return await worker.run(burst=True)

    return run


@pytest.mark.parametrize("options", [{}, {"on_success": Callback(f.note_success)}], ids=["", "by RQ's code"])
@pytest.mark.parametrize("function", [f.change_what_redis_does_not_take, f.change_what_rq_cannot_write])
async def test_a_job_that_changes_its_record_to_what_cannot_be_written_fails_and_no_other_does(
    queue: Queue, burst: Burst, *, function: Any, options: dict[str, Any]
) -> None:
    job = queue.enqueue(function, job_id="bad", **options)
    others = [queue.enqueue(f.add, n) for n in range(5)]
    dependent = queue.enqueue(f.add, 1, depends_on=job)
    await burst()
    assert place_of(queue.connection, "bad") == ["failed", "failed"]
    assert [other.return_value() for other in others] == [1, 2, 3, 4, 5]
    assert dependent.is_deferred
    result = job.latest_result()
    assert result is not None
    assert "Error" in (result.exc_string or "")
    assert_no_run_is_recorded(queue.connection)


def forge_crashes(client: redis.Redis) -> None:
    client.hset("rq:job:lost", mapping={"status": "started", "crashes": "x"})
    client.zadd("rq:wip:q", {"lost:1": 1})


def forge_registry(client: redis.Redis) -> None:
    client.set("rq:failed:q", "no registry")


def forge_intermediate(client: redis.Redis) -> None:
    client.set("rq:queue:q:intermediate", "no list")


@pytest.mark.parametrize("forge", [forge_crashes, forge_registry, forge_intermediate])
async def test_a_part_of_the_upkeep_that_redis_refuses_holds_up_no_other(
    queue: Queue, run_worker: RunWorker, until: Until, forge: Callable[[redis.Redis], None]
) -> None:
    forge(queue.connection)
    async with run_worker(**PLAIN, poll_seconds=0.05):
        for number in range(2):
            job = queue.enqueue_in(timedelta(seconds=0), f.add, number)
            await until(lambda job=job: reply(job.is_finished))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (RedisConnectionError("refused"), True),
        (OSError("no route"), True),
        (OutOfMemoryError("command not allowed", status_code="OOM"), True),
        (ReadOnlyError("a replica", status_code="READONLY"), True),
        (ResponseError("MISCONF the disk is full"), True),
        (ResponseError("BUSY Redis is busy running a script"), True),
        (ResponseError("user_script:1: -OOM command not allowed"), True),
        (ResponseError("WRONGTYPE Operation against a key"), False),
        (DataError("Invalid input of type: 'timedelta'"), False),
    ],
)
def test_which_errors_pass(error: Exception, passes: bool) -> None:  # noqa: FBT001
    assert is_away(error) is passes
