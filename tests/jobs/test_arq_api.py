"""What code expects that has only changed its import: arq's attributes, types and names (arq 0.28)."""

import asyncio
import dataclasses
import json
import pickle
import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from redis import asyncio as aioredis
from rq.serializers import JSONSerializer

import app.jobs
from app.jobs import (
    ArqRedis,
    AsyncWorker,
    Job,
    JobDef,
    JobExecutionFailed,
    JobStatus,
    RedisSettings,
    Retry,
    Worker,
    cron,
    func,
)
from app.jobs.cron import enqueue_due
from app.jobs.health import HealthRecord
from app.jobs.settings import async_pool
from tests.jobs.conftest import Until, run_all


def dumps(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


async def multiply(ctx: dict[str, Any], left: int, right: int) -> int:
    return left * right


async def test_a_pool_shows_its_serializer_and_takes_another(redis_url: str, arq_pool: ArqRedis) -> None:
    assert (arq_pool.job_serializer, arq_pool.job_deserializer) == (None, None)
    arq_pool.job_serializer, arq_pool.job_deserializer = dumps, json.loads
    assert (arq_pool.job_serializer, arq_pool.job_deserializer) == (dumps, json.loads)
    job = await arq_pool.enqueue_job("multiply", 6, 7)
    assert job is not None
    pools = []

    async def note_pool(ctx: dict[str, Any]) -> None:
        pools.append((ctx["redis"].job_serializer, ctx["redis"].job_deserializer))

    await run_all(redis_url, multiply, job_serializer=dumps, job_deserializer=json.loads, on_startup=note_pool)
    assert pools == [(dumps, json.loads)]
    assert await job.result(5) == 42


def test_a_pool_with_json_never_becomes_one_with_pickle() -> None:
    pool = ArqRedis(serializer="json")
    pool.job_serializer = pool.job_deserializer = None
    assert pool.serializer is JSONSerializer
    with pytest.raises(ValueError, match="not both"):
        pool.job_deserializer = pickle.loads
    assert pool.serializer is JSONSerializer


async def test_definitions_and_results_are_the_callers_to_change(redis_url: str, arq_pool: ArqRedis) -> None:
    job = await arq_pool.enqueue_job("multiply", 6, 7)
    assert job is not None
    found = await job.info()
    assert found is not None
    found.score = 5
    assert vars(found)["score"] == 5
    assert JobDef("f", (), {}, None, found.enqueue_time, 1.9, "x").score == 1  # type: ignore[arg-type]
    await run_all(redis_url, multiply)
    result = await job.result_info()
    assert result is not None
    assert {field.name for field in dataclasses.fields(result)} == set(vars(result))
    result.job_id = "another"


async def test_a_result_whose_record_is_gone_was_enqueued_at_the_epoch(redis_url: str, arq_pool: ArqRedis) -> None:
    job = await arq_pool.enqueue_job("multiply", 6, 7)
    assert job is not None
    await run_all(redis_url, multiply)
    known = await job.result_info()
    assert known is not None
    await arq_pool.delete(f"rq:job:{job.job_id}")
    (found,) = await arq_pool.all_job_results()
    assert found.enqueue_time == datetime(1970, 1, 1, tzinfo=UTC)
    assert (found.function, found.start_time, found.finish_time) == (
        "<unknown>",
        known.start_time,
        known.finish_time,
    )


@pytest.mark.parametrize("register", [func, cron])
@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("multiply", ImportError, '"multiply" doesn\'t look like a module path'),
        ("tests.jobs.nowhere.f", ModuleNotFoundError, "No module named 'tests.jobs.nowhere'"),
        ("tests.jobs.functions.f", ImportError, 'Module "tests.jobs.functions" does not define a "f" attribute'),
    ],
)
def test_a_path_that_leads_nowhere_says_so(
    register: Callable[[str], object], path: str, error: type[ImportError], text: str
) -> None:
    with pytest.raises(error) as caught:
        register(path)
    assert (type(caught.value), str(caught.value)) == (error, text)
    assert register(" tests.jobs.functions.multiply")


ARQS_NAMES = """
ArqRedis create_pool cron VERSION Retry Worker check_health func run_worker
RedisSettings log_redis_info
default_queue_name job_key_prefix in_progress_key_prefix result_key_prefix retry_key_prefix abort_jobs_ss
abort_job_max_age health_check_key_suffix keep_cronjob_progress timezone_env_vars expires_extra_ms
Options next_cron CronJob
Serializer Deserializer ResultNotFound JobStatus JobDef JobResult Job SerializationError DeserializationError
serialize_job serialize_result deserialize_job deserialize_job_raw deserialize_result
default_log_config
OptionType WeekdayOptionType WEEKDAYS SecondsTimedelta WorkerCoroutine StartupShutdown WorkerSettingsBase
WorkerSettingsType
as_int timestamp_ms to_unix_ms get_tz ms_to_datetime to_ms to_seconds poll truncate args_to_string import_string
Function JobExecutionFailed FailedJobs RetryJob get_kwargs create_worker async_check_health
"""
"""Those of arq 0.28's modules."""


@pytest.mark.parametrize("name", ARQS_NAMES.split())
def test_arqs_names_are_here_or_the_docs_say_that_they_are_not(name: str) -> None:
    missing = Path("docs/moving-from-arq.md").read_text().partition("\nNot there, ")[2].partition("\n\n")[0]
    is_here = name in app.jobs.__all__ and hasattr(app.jobs, name)
    assert is_here is not (f"`{name}`" in missing and name != "import_string")


WORKER_ATTRIBUTES = [
    *("functions", "queue_name", "cron_jobs", "burst", "on_startup", "on_shutdown", "on_job_start", "on_job_end"),
    *("after_job_end", "max_jobs", "job_timeout_s", "keep_result_s", "keep_result_forever", "poll_delay_s"),
    *("queue_read_limit", "max_tries", "health_check_interval", "health_check_key", "redis_settings", "main_task"),
    *("ctx", "jobs_complete", "jobs_retried", "jobs_failed", "on_stop", "retry_jobs", "allow_abort_jobs"),
    *("max_burst_jobs", "job_serializer", "job_deserializer", "expires_extra_ms", "log_results", "timezone"),
]
"""All of arq's that are public and not about how it works inside."""


def test_a_worker_shows_its_parameters() -> None:
    worker = Worker([multiply], job_timeout=timedelta(minutes=1), keep_result=7, poll_delay=0.25, max_jobs=30)
    assert [name for name in WORKER_ATTRIBUTES if not hasattr(worker, name)] == []
    assert (worker.job_timeout_s, worker.keep_result_s, worker.poll_delay_s) == (60, 7, 0.25)
    assert (worker.max_jobs, worker.queue_read_limit, worker.max_tries) == (30, 150, 5)
    assert (worker.health_check_key, worker.health_check_interval) == ("arq:queue:health-check", 3600)


async def test_what_is_set_on_a_worker_holds_from_then_on(redis_url: str, arq_pool: ArqRedis) -> None:
    seen: list[tuple[str, int]] = []

    async def note(ctx: dict[str, Any]) -> None:
        seen.append((ctx["mine"], ctx["job_try"]))

    async def again(ctx: dict[str, Any]) -> None:
        raise Retry

    worker = Worker([multiply], redis_settings=RedisSettings.from_dsn(redis_url), burst=True, handle_signals=False)
    worker.ctx = {"mine": "yes"}
    assert worker.loop is asyncio.get_running_loop()
    worker.on_job_start, worker.max_tries, worker.poll_delay_s = note, 2, 0.01
    worker.health_check_key, worker.health_check_interval = "how-we-are", 60
    worker.functions["again"] = func(again, name="again")
    job = await arq_pool.enqueue_job("again")
    assert job is not None
    await worker.async_run()
    assert await asyncio.to_thread(lambda: worker.loop) is asyncio.get_running_loop()
    assert seen == [("yes", 1), ("yes", 2)]
    assert 50 < await arq_pool.ttl("how-we-are") <= 61
    await worker.close()
    with pytest.raises(JobExecutionFailed, match="max 2 retries exceeded"):
        await job.result(5)


def test_what_a_worker_was_made_of_is_not_set_in_silence() -> None:
    worker = Worker([multiply])
    for name in ("queue_name", "redis_settings", "job_serializer", "job_deserializer"):
        with pytest.raises(AttributeError, match=f"{name} cannot be changed any more: make another worker"):
            setattr(worker, name, None)


@pytest.mark.parametrize("seconds", [-3600, 0.2])
async def test_the_score_is_the_time_a_job_was_due_however_late_it_runs(  # noqa: PLR0917 - fixtures
    redis_url: str, arq_pool: ArqRedis, until: Until, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    scores = []

    async def note(ctx: dict[str, Any]) -> None:
        found = await Job(ctx["job_id"], ctx["redis"]).info()
        assert found is not None
        scores.extend((ctx["score"], found.score))

    due = datetime.now(UTC) + timedelta(seconds=seconds)
    job = await arq_pool.enqueue_job("note", _defer_until=due)
    assert job is not None

    async def is_late() -> bool:
        return datetime.now(UTC) > due + timedelta(seconds=1.5)

    await until(is_late)
    with caplog.at_level("INFO", logger="arq.worker"):
        await run_all(redis_url, func(note, name="note"))
    assert scores == [round(due.timestamp() * 1000)] * 2
    (late,) = re.findall(r"delayed=(\d+\.\d\d)s", caplog.text)
    assert float(late) >= 1.5


async def test_a_job_that_is_due_is_queued_though_no_worker_looks(arq_pool: ArqRedis, until: Until) -> None:
    job = await arq_pool.enqueue_job("multiply", 6, 7, _defer_by=0.2, _queue_name="elsewhere")
    assert job is not None
    assert await job.status() is JobStatus.deferred

    async def is_queued() -> bool:
        return await job.status() is JobStatus.queued

    await until(is_queued)
    await arq_pool.enqueue_job("multiply", 6, 7, _defer_by=60, _job_id="later")
    assert await Job("later", arq_pool).status() is JobStatus.deferred


async def test_what_ends_before_its_start_is_kept_as_the_worker_says(
    redis_url: str, arq_pool: ArqRedis, until: Until
) -> None:
    function = func(multiply, keep_result=0)
    job = await arq_pool.enqueue_job("multiply", 6, 7, _job_try=6)
    unwanted = await arq_pool.enqueue_job("multiply", 6, 7)
    assert job is not None
    assert unwanted is not None
    aborting = asyncio.create_task(unwanted.abort(timeout=20))

    async def is_marked() -> bool:
        return bool(await arq_pool.hexists(f"rq:job:{unwanted.job_id}", "abort_requested"))

    await until(is_marked)
    await run_all(redis_url, function, allow_abort_jobs=True)
    assert await aborting is True
    with pytest.raises(JobExecutionFailed, match="max 5 retries exceeded"):
        await job.result(5)
    assert 3500 < await arq_pool.ttl(f"rq:results:{job.job_id}") <= 3600


async def test_health_is_written_no_more_often_than_the_worker_looks(arq_pool: ArqRedis) -> None:
    engine = AsyncWorker(["q"], poll_seconds=0.5)
    record = HealthRecord("health", "q", 0.0)
    assert await record.keep(arq_pool, engine) == 0.5
    await arq_pool.delete("health")
    assert 0 < await record.keep(arq_pool, engine) <= 0.5
    assert not await arq_pool.exists("health")


class SpringForward(tzinfo):
    """A zone whose clocks went from 0:00 to 1:00 at a moment in UTC."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment.replace(tzinfo=None)

    def utcoffset(self, dt: datetime | None) -> timedelta:
        assert dt is not None
        is_after = dt.replace(tzinfo=None) >= self._moment + timedelta(hours=1)
        return timedelta(hours=is_after or dt.fold)

    def dst(self, dt: datetime | None) -> timedelta:  # noqa: ARG002 - the base class's signature
        return timedelta(0)

    def fromutc(self, dt: datetime) -> datetime:
        return dt + timedelta(hours=dt.replace(tzinfo=None) >= self._moment)


async def test_a_cron_job_whose_time_the_clocks_left_out_runs_when_they_have_passed_it(arq_pool: ArqRedis) -> None:
    changed = datetime.now(UTC) - timedelta(minutes=10)
    zone = SpringForward(changed)
    job = cron(multiply, name="tick", minute=30)
    job.next_run = (changed + timedelta(minutes=30)).replace(tzinfo=zone)
    await enqueue_due([job], arq_pool, "q", zone)
    assert await arq_pool.llen("rq:queue:q") == 1


async def test_a_command_that_blocks_takes_as_long_as_it_was_told_to(redis_url: str, arq_pool: ArqRedis) -> None:
    limited = ArqRedis(unix_socket_path=redis_url.removeprefix("unix://"), socket_timeout=0.1)
    reading = asyncio.create_task(limited.xread({"stream": "$"}, block=0))
    assert await limited.blpop("list", timeout=0.5) is None
    await arq_pool.xadd("stream", {"a": "b"})
    assert await reading
    connection = await limited.connection_pool.get_connection()
    assert connection.socket_timeout == 0.1
    await limited.connection_pool.release(connection)
    await limited.aclose()


class Unshowable:
    """An argument."""

    def __repr__(self) -> str:
        raise RuntimeError("not to be shown")


async def test_an_argument_that_cannot_be_shown_fails_nobody(
    redis_url: str, arq_pool: ArqRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async def take(ctx: dict[str, Any], _taken: Unshowable) -> int:
        return 42

    job = await arq_pool.enqueue_job("take", Unshowable())
    assert job is not None
    assert await arq_pool.hget(f"rq:job:{job.job_id}", "description") == b"take(...)"
    with caplog.at_level("INFO", logger="arq.worker"):
        await run_all(redis_url, func(take, name="take"))
    assert await job.result(5) == 42
    assert ":take(<Unshowable that cannot be shown>)" in caplog.text


@pytest.mark.parametrize("mode", [None, "none", ssl.CERT_NONE])
def test_certificates_need_not_be_looked_at(mode: Any) -> None:
    pool = async_pool(RedisSettings(ssl=True, ssl_cert_reqs=mode), socket_timeout=1)
    assert pool.connection_kwargs["ssl_cert_reqs"] == ssl.CERT_NONE
    assert pool.make_connection().ssl_context.cert_reqs == ssl.CERT_NONE


async def test_a_job_may_be_asked_for_with_a_plain_client(redis_url: str, arq_pool: ArqRedis) -> None:
    await arq_pool.enqueue_job("multiply", 6, 7, _job_id="answer")
    async with aioredis.Redis(unix_socket_path=redis_url.removeprefix("unix://")) as plain:
        job = Job("answer", plain)
        assert await job.status() is JobStatus.queued
        info = await job.info()
        assert info is not None
        assert info.args == (6, 7)
        await run_all(redis_url, multiply)
        assert await job.result(5) == 42
        assert await Job("nobody", plain).abort() is False
