"""Endings that RQ's own code writes, when Redis fails in the middle, another run has the job, or RQ cannot."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from rq import Callback, Queue
from rq import Repeat as RQRepeat
from rq import Retry as RQRetry
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer
from rq.utils import now

from app.embedded import EmbeddedRedis
from app.jobs import ArqRedis, AsyncWorker, RedisSettings
from app.jobs.running import Running
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, lose_worker, reply
from tests.jobs.redis_snapshot import assert_no_run_is_recorded, place_of


@pytest.fixture
async def client(own_redis: EmbeddedRedis) -> AsyncIterator[redis.Redis]:
    with redis.Redis.from_url(own_redis.url) as client:
        yield client
        client.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize(
    ("function", "options", "then", "fields"),
    [
        (f.tell_and_fail, {"on_failure": Callback(f.count_call)}, ["failed", "failed"], {}),
        (
            f.tell_and_fail,
            {"on_failure": Callback(f.count_call), "retry": RQRetry(max=3, interval=60)},
            ["scheduled", "scheduled"],
            {"retries_left": b"2"},
        ),
        (
            f.tell_and_succeed,
            {"repeat": RQRepeat(times=3, interval=60), "on_success": Callback(f.count_call)},
            ["scheduled", "finished", "scheduled"],
            {"repeats_left": b"2"},
        ),
        (f.tell_and_ask_again, {}, ["scheduled", "scheduled"], {"number_of_retries": b"1"}),
    ],
)
async def test_an_ending_that_redis_refuses_at_first_is_written_once(
    client: redis.Redis,
    own_redis: EmbeddedRedis,
    run_worker: RunWorker,
    until: Until,
    *,
    function: Any,
    options: dict[str, Any],
    then: list[str],
    fields: dict[str, bytes],
) -> None:
    """Its callback is called once, and a retry or a repeat counted once."""
    Queue("q", connection=client).enqueue(function, job_id="one", **options)
    async with run_worker(**PLAIN, url=own_redis.url, lease_seconds=60) as worker:
        await until(lambda: reply(client.llen("test:started")))
        client.execute_command("ACL", "SETUSER", "default", "-hincrby")
        client.rpush("test:go", "go")
        await until(lambda: reply(client.execute_command("ACL", "LOG")))
        client.execute_command("ACL", "SETUSER", "default", "+hincrby")
        await until(lambda: reply(not worker.running))
        assert place_of(client, "one") == then
        assert {name: client.hget("rq:job:one", name) for name in fields} == fields
        if any(name.startswith("on_") for name in options):
            assert client.get("test:calls:one") == b"1"
        assert_no_run_is_recorded(client)


async def test_an_ending_is_not_written_over_a_run_that_began_during_its_callback(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    client = queue.connection
    queue.enqueue(f.nothing, job_id="one", on_success=Callback(f.wait_in_callback))
    async with run_worker(**PLAIN, lease_seconds=600) as worker:
        await until(lambda: reply(client.llen("test:started")))
        (member,) = client.zrange("rq:wip:q", 0, -1)
        client.zrem("rq:wip:q", member)
        client.zadd("rq:wip:q", {"one:another": now().timestamp() + 600})
        client.hset("rq:job:one", "worker_name", "another")
        client.rpush("test:go", "go")
        await until(lambda: reply(not worker.running))
    assert place_of(client, "one") == ["started", "wip"]
    assert client.hget("rq:job:one", "worker_name") == b"another"
    assert not client.exists("rq:results:one")


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (f.nothing, {"on_success": Callback(f.exit_callback)}),
        (f.fail, {"on_failure": Callback(f.exit_callback)}),
    ],
)
async def test_a_callback_that_exits_fails_its_job_alone(
    queue: Queue, run_worker: RunWorker, until: Until, *, function: Any, options: dict[str, Any]
) -> None:
    async with run_worker(**PLAIN):
        job = queue.enqueue(function, job_id="one", **options)
        await until(lambda: reply(job.is_failed))
        other = queue.enqueue(f.nothing)
        await until(lambda: reply(other.is_finished))
    assert "SystemExit" in (job.latest_result().exc_string or "")


async def test_a_handler_of_failures_that_fails_keeps_no_job_from_being_settled(
    queue: Queue, run_worker: RunWorker, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    first = queue.enqueue(f.fail, job_id="first")
    queue.enqueue(f.nothing, job_id="second", depends_on=first)
    async with run_worker(**PLAIN, exception_handlers=[f.break_handler]) as worker:
        await until(lambda: reply(first.is_failed and not worker.running))
    assert caplog.text.count("a handler of failures failed") == 1
    assert place_of(queue.connection, "first") == ["failed", "failed"]
    assert_no_run_is_recorded(queue.connection)


async def test_what_rqs_code_cannot_read_is_settled_without_its_dependents(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    """Once: the script would leave a job with dependents to RQ's code for ever."""
    first = queue.enqueue(f.nothing, job_id="first")
    queue.enqueue(f.nothing, job_id="second", depends_on=first)
    queue.connection.hset("rq:job:first", "enqueue_at_front", "no number")
    async with run_worker(**PLAIN) as worker, asyncio.timeout(5):
        await until(lambda: reply(place_of(queue.connection, "first") == ["failed", "failed"]))
        await until(lambda: reply(not worker.running))
    assert place_of(queue.connection, "second") == ["deferred", "deferred"]
    assert_no_run_is_recorded(queue.connection)


# refused jobs


@pytest.fixture
def json_queue(sync_redis: redis.Redis) -> Queue:
    return Queue("q", connection=sync_redis, serializer=JSONSerializer)


async def test_a_refused_job_with_a_dependent_is_not_tried_again(
    json_queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    options = {"on_success": Callback("tests.jobs.rq_functions.note_success"), "retry": RQRetry(max=3)}
    json_queue.enqueue(f.count, "test:ran", job_id="one", **options)
    json_queue.enqueue(f.nothing, job_id="two", depends_on="one")
    async with run_worker(functions=None) as worker:
        await until(lambda: reply(place_of(json_queue.connection, "one")[0] != "queued" and not worker.running))
    assert place_of(json_queue.connection, "one") == ["failed", "failed"]
    assert not json_queue.connection.exists("test:ran")


async def test_a_job_that_lost_three_workers_is_not_tried_again_for_its_dependents_sake(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    job = queue.enqueue(f.nothing, job_id="one", retry=RQRetry(max=5))
    queue.enqueue(f.nothing, job_id="two", depends_on="one")
    before = queue.connection.hget("rq:job:one", "data")
    lose_worker(queue, "one", crashes=2)
    async with run_worker(**PLAIN, lease_seconds=1):
        await until(lambda: reply(job.is_failed))
    assert place_of(queue.connection, "one") == ["failed", "failed"]
    assert queue.connection.hget("rq:job:one", "data") == before


@pytest.mark.parametrize("is_poison", [False, True])
async def test_a_refused_job_gives_its_slot_free(
    json_queue: Queue, redis_url: str, until: Until, *, is_poison: bool
) -> None:
    """At once: RQ's maintenance, which would find the slot minutes later, is held off."""
    callback = None if is_poison else Callback("tests.jobs.rq_functions.note_success")
    json_queue.enqueue(f.nothing, job_id="one", on_success=callback, rate_limit=RateLimit("r", 1))
    other = json_queue.enqueue(f.nothing, job_id="two", rate_limit=RateLimit("r", 1))
    if is_poison:
        lose_worker(json_queue, "one", crashes=2)
    worker = AsyncWorker(
        ["q"], redis_settings=RedisSettings.from_dsn(redis_url), serializer="json", lease_seconds=2
    )
    worker.last_cleaned_at = now()  # type: ignore[assignment]  # RQ types it None
    running = asyncio.create_task(worker.run())
    await until(lambda: reply(other.is_finished))
    assert place_of(json_queue.connection, "one") == ["failed", "failed"]
    worker.request_shutdown()
    await running


def test_a_refused_bomb_stays_packed_while_rqs_code_settles_it(sync_redis: redis.Redis) -> None:
    bomb = zlib.compress(bytes(3_000_000))
    running = Running(
        queue_name="q",
        job_id="one",
        execution_id="a" * 32,
        raw={b"data": bomb, b"created_at": b"2026-01-01T00:00:00.000000Z"},
        started=0.0,
        worker_name="w",
        connection=sync_redis,
        serializer=JSONSerializer,
    )
    running.is_refused = True
    assert running.job.data == b""
    assert running.job.to_dict()["data"] == bomb, "it may be requeued where it is not refused"


# arq's jobs


async def test_arqs_job_with_a_dependent_is_kept_as_its_worker_says(
    pool: ArqRedis, sync_redis: redis.Redis, run_worker: RunWorker, until: Until
) -> None:
    await pool.enqueue_job("arq_multiply", 2, 3, _job_id="one")
    await pool.enqueue_job("arq_fail", _job_id="two")
    for parent in ("one", "two"):
        Queue("x", connection=sync_redis).enqueue(f.nothing, depends_on=parent)
    async with run_worker(functions=[f.arq_multiply, f.arq_fail], keep_result=100) as worker:
        await until(lambda: reply(place_of(sync_redis, "two")[0] == "failed" and not worker.running))
    assert 0 < sync_redis.ttl("rq:job:one") <= 100
    assert 0 < sync_redis.ttl("rq:job:two") <= 100
