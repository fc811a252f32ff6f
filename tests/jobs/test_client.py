"""What enqueueing promises its callers: shared round trips, a budget, and what a record looks like."""

import asyncio
import base64
import json
import socket
import warnings
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from rq import Queue
from rq.job import Job as RQJob
from rq.serializers import DefaultSerializer, JSONSerializer

from app.embedded import EmbeddedRedis
from app.jobs import (
    ArqRedis,
    Budget,
    Job,
    JobExecutionFailed,
    JobRequest,
    QueueUnavailable,
    RedisSettings,
    Retry,
    cron,
    func,
)
from app.jobs.coalescing import Coalescer
from app.jobs.cron import next_cron
from app.jobs.job import failure_of
from app.jobs.serializers import ArqSerializer, choose_serializer, may_unpickle
from app.jobs.values import display_zone, displayed
from tests.jobs.conftest import RunWorker


def commands(client: redis.Redis, name: str) -> int:
    found: dict[str, dict[str, int]] = client.info("commandstats")  # type: ignore[assignment]
    return found.get(f"cmdstat_{name}", {}).get("calls", 0)


async def test_calls_made_together_share_a_round_trip(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    await pool.enqueue_job("warm")
    before = commands(sync_redis, "evalsha")
    jobs = await asyncio.gather(*(pool.enqueue_job("f", number) for number in range(64)))
    assert commands(sync_redis, "evalsha") - before <= 2
    assert len({job.job_id for job in jobs if job is not None}) == 64


async def test_any_number_of_jobs_is_one_pipeline(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    jobs = await pool.enqueue_jobs([JobRequest("f", (number,)) for number in range(1000)])
    assert all(jobs)
    assert sync_redis.llen("rq:queue:q") == 1000
    ids = [job.job_id.encode() for job in jobs if job is not None]
    assert sync_redis.lrange("rq:queue:q", 0, -1) == ids


async def test_of_racing_calls_with_one_id_one_wins(pool: ArqRedis) -> None:
    jobs = await asyncio.gather(*(pool.enqueue_job("f", _job_id="same") for _ in range(200)))
    assert sum(job is not None for job in jobs) == 1


async def test_a_cancelled_call_takes_none_of_the_others_with_it(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    calls = [asyncio.ensure_future(pool.enqueue_job("f", number)) for number in range(10)]
    await asyncio.sleep(0)
    calls[3].cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done[3], asyncio.CancelledError)
    assert sum(isinstance(each, Job) for each in done) == 9
    assert sync_redis.llen("rq:queue:q") in {9, 10}


async def test_one_bad_answer_is_one_callers() -> None:
    async def send(requests: Any) -> list[Any]:
        return [ValueError(each) if each == 2 else each for each in requests]

    coalescer: Coalescer[int, int] = Coalescer(send)
    answers = await asyncio.gather(*(coalescer.ask(number) for number in range(4)), return_exceptions=True)
    assert [type(each) for each in answers] == [int, int, ValueError, int]


async def test_a_failed_sending_fails_all_that_were_in_it() -> None:
    async def send(requests: Any) -> list[Any]:
        raise OSError("away")

    coalescer: Coalescer[int, int] = Coalescer(send)
    answers = await asyncio.gather(*(coalescer.ask(number) for number in range(3)), return_exceptions=True)
    assert [str(each) for each in answers] == ["away"] * 3


@pytest.mark.parametrize("options", [{"_expires": 1e17}, {"_defer_by": 1e17}, {"_expires": float("inf")}])
async def test_a_job_may_last_for_ages(pool: ArqRedis, sync_redis: redis.Redis, options: dict[str, Any]) -> None:
    jobs = [pool.enqueue_job("f", _job_id=each, **(options if each == "b" else {})) for each in "abc"]
    assert all(await asyncio.gather(*jobs))
    assert sync_redis.llen("rq:queue:q") + sync_redis.zcard("rq:scheduled:q") == 3
    assert sync_redis.ttl("rq:job:b") > 10**10


async def test_a_job_that_has_no_place_fails_its_own_call_alone(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    sync_redis.set("rq:queue:bad", "of another type")
    calls = [pool.enqueue_job("f", _job_id=each, _queue_name=each) for each in ("q", "bad", "other")]
    first, bad, other = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, redis.ResponseError)
    assert not isinstance(first, BaseException | None)
    assert not isinstance(other, BaseException | None)
    assert not sync_redis.exists("rq:job:bad")
    with pytest.raises(redis.ResponseError):
        await pool.enqueue_jobs([JobRequest("f"), JobRequest("f", queue_name="bad")])


async def test_rq_reads_a_record_as_it_would_its_own(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    job = await pool.enqueue_job("pkg.mod.f", 1, "two", _job_id="x", three=[3])
    assert job is not None
    read = RQJob.fetch("x", connection=sync_redis, serializer=JSONSerializer)
    assert read.func_name == "app.jobs.trampoline.run_by_name"
    assert tuple(read.args) == ("pkg.mod.f", 1, "two")
    assert read.kwargs == {"three": [3]}
    assert read.description == "pkg.mod.f(1, 'two', three=[3])"
    assert (read.origin, read.result_ttl, read.failure_ttl, read.retries_left) == ("q", 3600, 3600, 4)
    assert read.get_status() == "queued"
    assert abs((read.enqueued_at - datetime.now(UTC)).total_seconds()) < 5  # type: ignore[operator]
    assert Queue("q", connection=sync_redis, serializer=JSONSerializer).job_ids == ["x"]


async def test_a_record_takes_no_more_memory_than_rqs(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    ident = "0f8fad5b-d9cb-469f-a165-70867728950e"
    stock = Queue("r", connection=sync_redis).enqueue("pkg.mod.process_file", ident)
    ours = await pool.enqueue_job("pkg.mod.process_file", ident)
    assert ours is not None
    mine, theirs = (sync_redis.memory_usage(f"rq:job:{each}", samples=0) for each in (ours.job_id, stock.id))
    assert mine is not None
    assert theirs is not None
    assert mine <= theirs


async def test_the_default_life_of_a_job_is_a_day_and_a_backstop(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    await pool.enqueue_job("f", _job_id="x", _defer_by=timedelta(hours=1))
    await pool.enqueue_job("f", _job_id="y", _defer_by=60, _expires=90)
    here = datetime.now(UTC).timestamp()
    assert float(sync_redis.hget("rq:job:x", "expires_at") or 0) - here == pytest.approx(90_000, abs=5)
    assert float(sync_redis.hget("rq:job:y", "expires_at") or 0) - here == pytest.approx(90, abs=5)
    assert sync_redis.ttl("rq:job:y") == pytest.approx(86_490, abs=5)
    with pytest.raises(RuntimeError, match="not both"):
        await pool.enqueue_job("f", _defer_by=1, _defer_until=datetime.now(UTC))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


async def test_a_silent_redis_costs_the_budget_once_and_then_nothing(silent_port: int) -> None:
    budget = Budget(answer_seconds=0.05, break_seconds=60)
    pool = ArqRedis(host="127.0.0.1", port=silent_port, budget=budget)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(QueueUnavailable, match=rf"127.0.0.1:{silent_port} did not answer within 0.05\d* s"):
        await pool.enqueue_job("f")
    first = loop.time() - started
    for call in (pool.enqueue_job("f"), Job("x", pool).status(), Job("x", pool).info()):
        with pytest.raises(QueueUnavailable, match="not asked again for "):
            await call
    assert first < 5
    assert loop.time() - started - first < first
    await pool.aclose()


async def test_the_circuit_closes_when_redis_is_back(own_redis: EmbeddedRedis) -> None:
    budget = Budget(answer_seconds=5, break_seconds=0)
    pool = ArqRedis(unix_socket_path=own_redis.url.removeprefix("unix://"), budget=budget)
    assert await pool.enqueue_job("f")
    own_redis.stop()
    with pytest.raises(QueueUnavailable, match="check that it runs there"):
        await pool.enqueue_job("f")
    own_redis.start()
    assert await pool.enqueue_job("f")
    await pool.aclose()


async def test_a_full_redis_is_away_a_wrong_command_is_not(redis_url: str, sync_redis: redis.Redis) -> None:
    pool = ArqRedis(unix_socket_path=redis_url.removeprefix("unix://"), budget=Budget(break_seconds=60))
    with pytest.raises(redis.ResponseError):
        async with pool.within_budget():
            await pool.execute_command("NOSUCH")
    await pool.enqueue_job("f")
    sync_redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(QueueUnavailable, match="takes writes"):
            await pool.enqueue_job("f")
    finally:
        sync_redis.config_set("maxmemory", "0")
    await pool.aclose()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "2026-11-23T10:00:01"),
        ({"second": 30}, "2026-11-23T10:00:30"),
        ({"minute": 5}, "2026-11-23T10:05:00"),
        ({"hour": 9}, "2026-11-24T09:00:00"),
        ({"hour": {9, 12}, "minute": 12}, "2026-11-23T12:12:00"),
        ({"weekday": "sun", "hour": 3, "minute": 0}, "2026-11-29T03:00:00"),
        ({"weekday": 0, "hour": 10, "minute": 0, "second": 0}, "2026-11-30T10:00:00"),
        ({"day": 31, "hour": 0, "minute": 0}, "2026-12-31T00:00:00"),
        ({"month": 2, "day": 29, "hour": 0, "minute": 0}, "2028-02-29T00:00:00"),
        ({"second": {0, 20, 40}}, "2026-11-23T10:00:20"),
    ],
)
def test_cron_finds_the_next_moment(options: dict[str, Any], expected: str) -> None:
    here = datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)
    found = next_cron(here, **({"second": None} if not options else {}), **options)
    assert found == datetime.fromisoformat(expected).replace(tzinfo=UTC, microsecond=123_456)


def test_cron_refuses_dates_that_do_not_exist() -> None:
    with pytest.raises(RuntimeError, match="no such date"):
        next_cron(datetime(2026, 1, 1, tzinfo=UTC), month=2, day=31)
    with pytest.raises(RuntimeError, match="is not a coroutine function"):
        cron(print, hour=1)
    with pytest.raises(RuntimeError, match="is not a coroutine function"):
        func(print)


def test_retry_and_failures_look_as_arqs() -> None:
    assert str(Retry(5)) == repr(Retry(timedelta(seconds=5))) == "<Retry defer 5.00s>"
    assert Retry(1.5).defer_score == 1500
    assert Retry().defer_score is None
    assert JobExecutionFailed("x") == JobExecutionFailed("x") != JobExecutionFailed("y")


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (zlib.compress(b"Traceback\nValueError: the end\n"), "ValueError: the end"),
        (zlib.compress(bytes(17 * 1024 * 1024)), "the job failed, and its traceback has more than 16777216 bytes"),
        (b"no zlib", "the job failed, and its traceback cannot be read"),
        (b"", "the job failed without a traceback"),
    ],
)
def test_a_failures_text_is_unpacked_as_far_as_it_is_reasonable(packed: bytes, expected: str) -> None:
    entry = {"type": "2", "exc_string": base64.b64encode(packed).decode()}
    assert failure_of(entry) == JobExecutionFailed(expected)


def test_times_are_shown_in_the_zone_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARQ_TIMEZONE", "Asia/Tokyo")
    display_zone.cache_clear()
    try:
        assert displayed(datetime(2026, 1, 1, tzinfo=UTC)).tzinfo == ZoneInfo("Asia/Tokyo")
        monkeypatch.setenv("ARQ_TIMEZONE", "../etc/passwd")
        display_zone.cache_clear()
        assert displayed(datetime(2026, 1, 1, tzinfo=UTC)).tzinfo is UTC
    finally:
        display_zone.cache_clear()


def test_who_may_unpickle() -> None:
    assert may_unpickle(DefaultSerializer)
    assert not may_unpickle(JSONSerializer)
    assert may_unpickle(ArqSerializer(json.dumps))  # type: ignore[arg-type]
    assert not may_unpickle(ArqSerializer(json.dumps, json.loads))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        choose_serializer("json", json.dumps, None)  # type: ignore[arg-type]


def test_a_settings_repr_hides_the_password() -> None:
    settings = RedisSettings.from_dsn("rediss://u:hush%21@h:1/3")
    assert (settings.password, settings.ssl, settings.database) == ("hush!", True, 3)
    assert "hush" not in repr(settings)
    assert repr(RedisSettings()).startswith("RedisSettings(host='localhost', port=6379, unix_socket_path=None, ")
    with pytest.raises(RuntimeError, match="invalid DSN scheme"):
        RedisSettings.from_dsn("http://x")


async def test_the_old_spelling_warns(pool: ArqRedis) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError):
            await Job("nobody", pool).result(pole_delay=1)
    assert [each.category for each in caught] == [DeprecationWarning]


@pytest.mark.parametrize("place", ["queue", "scheduled"])
async def test_a_job_that_came_too_late_gives_its_id_to_another(
    pool: ArqRedis, sync_redis: redis.Redis, place: str, run_worker: RunWorker
) -> None:
    delay = 60 if place == "scheduled" else None
    assert await pool.enqueue_job("multiply", 1, 1, _job_id="twice", _expires=100, _defer_by=delay)
    assert await pool.enqueue_job("multiply", 2, 3, _job_id="twice") is None, "it may still start in time"
    sync_redis.hset("rq:job:twice", "expires_at", "1.000")
    job = await pool.enqueue_job("multiply", 2, 3, _job_id="twice")
    assert job is not None
    assert sync_redis.lrange("rq:queue:q", 0, -1) == [b"twice"]
    assert sync_redis.zcard("rq:scheduled:q") == 0
    async with run_worker():
        assert await job.result(10) == 6


async def test_but_not_while_somebody_has_it_in_hand(pool: ArqRedis, sync_redis: redis.Redis) -> None:
    assert await pool.enqueue_job("multiply", 1, 1, _job_id="held", _expires=100)
    sync_redis.hset("rq:job:held", "expires_at", "1.000")
    sync_redis.lpop("rq:queue:q")  # as a stock worker does before it says that it has started
    assert await pool.enqueue_job("multiply", 2, 3, _job_id="held") is None
