"""The lines that arq logs of its jobs, word for word: people search their logs for them (arq 0.28)."""

import asyncio
import re
import signal
from typing import Any

import pytest
import redis

from app.jobs import ArqRedis, RedisSettings, Retry, Worker, create_pool, cron, func
from tests.jobs.conftest import Until, run_all


async def work(ctx: dict[str, Any], *args: Any) -> Any:
    return args[0] if args else None


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """What arq's loggers said of jobs, with their level; times as N.NN."""
    caplog.set_level("INFO", logger="arq")

    def found() -> list[str]:
        said = [
            f"{each.name} {each.levelname} {re.sub('[0-9]+[.][0-9][0-9]s', 'N.NNs', each.getMessage().lstrip())}"
            for each in caplog.records
            if each.name.startswith("arq.")
        ]
        about = ("Starting worker", "redis_version", "shutdown on")
        return [each for each in said if not any(word in each for word in about)]

    return found


async def test_a_run_is_named_by_its_id_and_function_whatever_the_id(
    redis_url: str, arq_pool: ArqRedis, lines: Any
) -> None:
    await arq_pool.enqueue_job("work", 42, x=1, _job_id="work:7")
    await run_all(redis_url, func(takes_any, name="work"))
    assert lines() == [
        "arq.worker INFO N.NNs → work:7:work(42, x=1)",
        "arq.worker INFO N.NNs ← work:7:work ● 42",
    ]


async def takes_any(ctx: dict[str, Any], value: Any, **kwargs: Any) -> Any:
    return value


async def test_a_cron_job_is_named_by_its_name(redis_url: str, lines: Any) -> None:
    job = cron(work, name="tick", job_id="mine", run_at_startup=True, month=2, day=29, hour=0, minute=0)
    await run_all(redis_url, cron_jobs=[job])
    assert lines() == ["arq.worker INFO N.NNs → tick()", "arq.worker INFO N.NNs ← tick ● "]


async def test_what_does_not_start_is_told_in_arqs_words(
    redis_url: str, arq_pool: ArqRedis, lines: Any, until: Until
) -> None:
    unwanted = await arq_pool.enqueue_job("work", _job_id="unwanted")
    assert unwanted is not None
    aborting = asyncio.create_task(unwanted.abort(timeout=20))

    async def is_marked() -> bool:
        return bool(await arq_pool.hexists("rq:job:unwanted", "abort_requested"))

    await until(is_marked)
    await arq_pool.enqueue_job("work", _job_id="late")
    await arq_pool.hset("rq:job:late", "expires_at", 1)
    await arq_pool.enqueue_job("work", _job_id="tired", _job_try=6)
    await arq_pool.enqueue_job("work", _job_id="unreadable")
    await arq_pool.hset("rq:job:unreadable", "data", b"no pickle")
    await arq_pool.enqueue_job("nowhere", _job_id="lost")
    await run_all(redis_url, work, allow_abort_jobs=True)
    assert await aborting
    assert sorted(lines()) == [
        "arq.worker ERROR deserializing job unreadable failed",
        "arq.worker INFO N.NNs ⊘ unwanted:work aborted before start",
        "arq.worker WARNING N.NNs ! tired:work max retries 5 exceeded",
        "arq.worker WARNING job late expired",
        "arq.worker WARNING job lost, function 'nowhere' not found",
    ]


async def test_a_result_that_cannot_be_serialized_is_told_by_arqs_logger(
    redis_url: str, arq_pool: ArqRedis, lines: Any
) -> None:
    async def give(ctx: dict[str, Any]) -> object:
        return lambda: None

    await arq_pool.enqueue_job("give", _job_id="given")
    await run_all(redis_url, func(give, name="give"), log_results=False)
    assert lines()[-1] == "arq.jobs WARNING error serializing result of given:give"


async def test_a_job_is_told_to_begin_after_its_hook(redis_url: str, arq_pool: ArqRedis, lines: Any) -> None:
    seen = []

    async def hook(ctx: dict[str, Any]) -> None:
        seen.extend(lines())

    async def again(ctx: dict[str, Any]) -> None:
        if ctx["job_try"] == 1:
            raise Retry

    await arq_pool.enqueue_job("again", _job_id="x")
    await run_all(redis_url, func(again, name="again"), on_job_start=hook)
    assert seen == ["arq.worker INFO N.NNs → x:again()", "arq.worker INFO N.NNs ↻ x:again retrying job in N.NNs"]


@pytest.mark.parametrize("is_over", [True, False])
async def test_a_wait_for_running_jobs_is_told_before_and_after(
    redis_url: str, arq_pool: ArqRedis, caplog: pytest.LogCaptureFixture, *, is_over: bool
) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def hold(ctx: dict[str, Any]) -> None:
        has_begun.set()
        await may_end.wait()

    worker = Worker(
        [func(hold, name="hold")],
        redis_settings=RedisSettings.from_dsn(redis_url),
        handle_signals=False,
        job_completion_wait=30 if is_over else 0.01,
    )
    await arq_pool.enqueue_job("hold")
    running = asyncio.create_task(worker.async_run())
    await has_begun.wait()
    with caplog.at_level("INFO", logger="arq.worker"):
        worker.handle_sig_wait_for_completion(signal.SIGTERM)
        if is_over:
            may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    told = [each.getMessage() for each in caplog.records if "shutdown" in each.msg or "Setting" in each.msg]
    assert told == [
        "Setting allow_pick_jobs to `False`",
        "shutdown on SIGTERM ◆ 0 jobs complete ◆ 0 failed ◆ 0 retries ◆ 1 to be completed",
        f"shutdown on SIGTERM, wait complete ◆ {int(is_over)} jobs complete ◆ 0 failed ◆ 0 retries ◆ "
        f"{int(not is_over)} ongoing to cancel",
    ]
    await worker.close()


async def test_a_redis_that_is_away_is_told_by_arqs_logger(tmp_path: Any, lines: Any) -> None:
    settings = RedisSettings(unix_socket_path=str(tmp_path / "none"), conn_retries=1, conn_retry_delay=0)
    with pytest.raises(redis.ConnectionError):
        await create_pool(settings)
    (line,) = lines()
    assert line.startswith("arq.connections WARNING redis connection error localhost:6379 ConnectionError ")
    assert line.endswith(", 1 retries remaining...")
