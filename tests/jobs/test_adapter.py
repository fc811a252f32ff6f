"""Enqueueing through the façade, with RQ as the judge of what it stored."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry
from rq.serializers import JSONSerializer

from app.jobs import (
    ArqRedis,
    Job,
    JobRequest,
    JobStatus,
    RedisSettings,
    ResultNotFound,
    SerializationError,
    create_pool,
)
from app.jobs.ids import from_rq_id, to_rq_id


async def test_rq_reads_what_the_adapter_wrote(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    job = await pool.enqueue_job("multiply", 6, 7, _job_id="answer")
    assert job is not None
    stored = RQJob.fetch("answer", connection=sync_redis, serializer=JSONSerializer)
    assert stored.get_status() is RQStatus.QUEUED
    assert stored.args == ["multiply", 6, 7]
    assert stored.description == "multiply(6, 7)"
    assert stored.origin == "q"
    assert stored.enqueued_at is not None
    assert Queue("q", connection=sync_redis).job_ids == ["answer"]
    assert [queue.name for queue in Queue.all(connection=sync_redis)] == ["q"]
    assert await job.status() is JobStatus.queued


async def test_an_id_that_exists_is_not_enqueued_again_however_many_try_at_once(pool: ArqRedis) -> None:
    jobs = await asyncio.gather(*(pool.enqueue_job("multiply", n, 1, _job_id="same") for n in range(50)))
    assert sum(job is not None for job in jobs) == 1
    assert await pool.llen("rq:queue:q") == 1


async def test_two_hundred_at_once_are_no_problem(pool: ArqRedis) -> None:
    jobs = await asyncio.gather(*(pool.enqueue_job("multiply", n, 1) for n in range(200)))
    assert all(jobs)
    assert await pool.llen("rq:queue:q") == 200


async def test_any_number_of_jobs_takes_one_round_trip(pool: ArqRedis) -> None:
    await pool.ping()

    async def reads() -> int:
        stats: dict[str, int] = await pool.info("stats")
        return stats["total_reads_processed"]

    before = await reads()
    jobs = await pool.enqueue_jobs([JobRequest("multiply", (n, 1), job_id=f"j{n}") for n in range(100)])
    # Redis reads 16 KB at a time, so 100 jobs of some 600 bytes are a handful of reads, not 100
    assert await reads() - before < 20
    assert all(jobs)
    again = await pool.enqueue_jobs([JobRequest("multiply", (n, 1), job_id=f"j{n}") for n in range(99, 102)])
    assert [job is not None for job in again] == [False, True, True]


async def test_a_deferred_job_waits_in_rqs_scheduled_registry(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    job = await pool.enqueue_job("multiply", 1, 1, _job_id="later", _defer_until=due)
    assert job is not None
    assert await job.status() is JobStatus.deferred
    registry = ScheduledJobRegistry("q", connection=sync_redis)
    assert abs((registry.get_scheduled_time("later") - due).total_seconds()) < 1
    info = await job.info()
    assert info is not None
    assert info.score is not None
    assert abs(info.score / 1000 - due.timestamp()) < 1
    assert await pool.enqueue_job("multiply", 1, 1, _job_id="later", _defer_by=5) is None
    with pytest.raises(RuntimeError, match="not both"):
        await pool.enqueue_job("multiply", 1, 1, _defer_by=1, _defer_until=due)


async def test_arguments_that_cannot_be_serialized_are_refused_by_name(pool: ArqRedis) -> None:
    with pytest.raises(SerializationError, match='unable to serialize job "multiply"'):
        await pool.enqueue_job("multiply", object())
    assert await pool.dbsize() == 0


async def test_what_is_not_there_is_not_found(pool: ArqRedis) -> None:
    job = Job("nothing", pool, "q")
    assert await job.status() is JobStatus.not_found
    assert await job.info() is None
    assert await job.abort(timeout=0.1) is False
    with pytest.raises(ResultNotFound):
        await job.result()


async def test_a_redis_that_is_not_there_is_an_error_after_the_retries(tmp_path) -> None:
    settings = RedisSettings(unix_socket_path=str(tmp_path / "none"), conn_retries=2, conn_retry_delay=0)
    with pytest.raises((redis.ConnectionError, OSError)):
        await create_pool(settings)


@given(st.text() | st.text(alphabet="YQRab_-64", max_size=8).map("b64_-".__add__))
def test_every_id_fits_rqs_alphabet_and_comes_back(job_id: str) -> None:
    try:
        job_id.encode()
    except UnicodeEncodeError:
        return
    rq_id = to_rq_id(job_id)
    RQJob(id=rq_id, connection=redis.Redis())  # RQ itself refuses an id outside of its alphabet
    assert from_rq_id(rq_id) == job_id


@example("a", "b64_-YQ")
@example("b64_-", "")
@given(st.text(alphabet="abc_-b64", max_size=12), st.text(alphabet="abc:_-b64", max_size=12))
def test_different_ids_stay_different(left: str, right: str) -> None:
    assert (to_rq_id(left) == to_rq_id(right)) == (left == right)


@pytest.mark.parametrize("rq_id", ["b64_-a", "b64_-_-8", "b64_-YQ", "b64_-YR"])
async def test_an_id_of_rqs_that_only_looks_escaped_is_listed_as_it_is(
    pool: ArqRedis, sync_redis: redis.Redis, rq_id: str
) -> None:
    Queue("q", connection=sync_redis, serializer=JSONSerializer).enqueue("some.function", job_id=rq_id)
    (listed,) = await pool.queued_jobs()
    assert listed.job_id == rq_id


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("redis://", {"host": "localhost", "port": 6379, "database": 0}),
        ("redis://h:1/3", {"host": "h", "port": 1, "database": 3}),
        ("redis://u:p%40@h?db=4", {"username": "u", "password": "p@", "database": 4}),
        ("rediss://h", {"ssl": True}),
        ("unix:///run/redis.sock?db=2", {"unix_socket_path": "/run/redis.sock", "database": 2}),
    ],
)
def test_settings_from_a_dsn(dsn: str, expected: dict[str, object]) -> None:
    settings = RedisSettings.from_dsn(dsn)
    assert {name: getattr(settings, name) for name in expected} == expected


def test_another_scheme_is_refused() -> None:
    with pytest.raises(RuntimeError, match="invalid DSN scheme"):
        RedisSettings.from_dsn("http://localhost")


@pytest.mark.parametrize("status", ["finished", "failed", "stopped", "canceled"])
async def test_a_job_that_is_over_makes_way_if_asked_to(
    pool: ArqRedis, sync_redis: redis.Redis, status: str
) -> None:
    again = JobRequest("multiply", (1, 1), job_id="same", replace_settled=True)
    other = JobRequest("multiply", (1, 1), job_id="other")
    assert all(await pool.enqueue_jobs([again, other]))
    assert await pool.enqueue_jobs([other, again]) == [None, None], "a job that waits keeps its id"
    sync_redis.delete("rq:queue:q")
    sync_redis.hset("rq:job:same", "status", status)
    sync_redis.zadd(f"rq:{status if status != 'stopped' else 'failed'}:q", {"same": 1})
    made = await pool.enqueue_jobs([other, again])
    assert [job is not None for job in made] == [False, True]
    assert Queue("q", connection=sync_redis).job_ids == ["same"]
    assert fetch_status(sync_redis) == b"queued"
    assert not any(sync_redis.zcard(f"rq:{registry}:q") for registry in ("finished", "failed", "canceled"))


def fetch_status(sync_redis: redis.Redis) -> object:
    return sync_redis.hget("rq:job:same", "status")
