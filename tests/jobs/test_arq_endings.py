"""How jobs end under arq's worker when an error or a hook is odd."""

import asyncio
import signal
from contextvars import ContextVar
from typing import Any

import pytest

from app.jobs import (
    ArqRedis,
    AsyncWorker,
    Job,
    JobRequest,
    JobStatus,
    RedisSettings,
    Retry,
)
from tests.jobs import functions
from tests.jobs.conftest import MakeWorker, heard, to_the_end


class ExtraFails(Exception):
    def extra(self) -> dict[str, Any]:
        raise KeyError("no such field")


class ScoreOnly(Retry):
    def __init__(self, score: Any) -> None:
        self.defer_score = score


async def raise_extra_fails(ctx: dict[str, Any]) -> None:
    raise ExtraFails


async def test_an_error_whose_extra_fails_gives_way_to_that_failure(
    arq_pool: ArqRedis, make_worker: MakeWorker
) -> None:
    job = await arq_pool.enqueue_job("raise_extra_fails")
    assert job is not None
    worker = make_worker({"raise_extra_fails": raise_extra_fails}, burst=True)
    await to_the_end(worker)
    assert worker.jobs_failed == 1
    with pytest.raises(KeyError, match="no such field"):
        await job.result(5)


async def test_so_it_does_without_arqs_log_lines(
    arq_pool: ArqRedis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = await arq_pool.enqueue_job("raise_extra_fails")
    assert job is not None
    settings = RedisSettings.from_dsn(redis_url)
    await AsyncWorker(["arq:queue"], redis_settings=settings, functions=[raise_extra_fails]).run(burst=True)
    assert "cannot be told" in caplog.text
    with pytest.raises(KeyError, match="no such field"):
        await job.result(5)


@pytest.mark.parametrize(("score", "runs"), [(5, 2), (None, 2), ("soon", 1)])
async def test_a_retry_that_knows_its_score_only(
    arq_pool: ArqRedis, make_worker: MakeWorker, score: Any, runs: int
) -> None:
    async def again(ctx: dict[str, Any]) -> int:
        if ctx["job_try"] == 1:
            raise ScoreOnly(score)
        return int(ctx["job_try"])

    job = await arq_pool.enqueue_job("again")
    assert job is not None
    worker = make_worker({"again": again}, burst=True, poll_delay=0.01)
    await to_the_end(worker)
    assert (worker.jobs_retried, worker.jobs_failed) == ((1, 0) if runs == 2 else (0, 1))
    if runs == 1:
        with pytest.raises(TypeError):
            await job.result(5)
    else:
        assert await job.result(5) == runs


async def test_hooks_after_jobs_run_side_by_side(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    barrier = asyncio.Barrier(3)

    async def meet_after(ctx: dict[str, Any]) -> None:
        async with asyncio.timeout(10):
            await barrier.wait()

    await arq_pool.enqueue_jobs([JobRequest("nothing") for _ in range(3)])
    await to_the_end(make_worker({"nothing": functions.nothing}, after_job_end=meet_after, burst=True))


async def test_a_hook_after_a_job_may_wait_for_another_job(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    results: list[int] = []

    async def ask_for_more(ctx: dict[str, Any]) -> None:
        if ctx["job_id"] == "first":
            job = await ctx["redis"].enqueue_job("multiply", 6, 7)
            results.append(await job.result(10))

    await arq_pool.enqueue_job("nothing", _job_id="first")
    named = {"nothing": functions.nothing, "multiply": functions.multiply}
    await to_the_end(make_worker(named, after_job_end=ask_for_more, burst=True))
    assert results == [42]


async def test_a_jobs_hooks_share_its_context(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    request_id: ContextVar[str] = ContextVar("request_id", default="none")
    seen: list[str] = []

    async def begin(ctx: dict[str, Any]) -> None:
        ctx["token"] = request_id.set(ctx["job_id"])

    async def end(ctx: dict[str, Any]) -> None:
        seen.append(request_id.get())
        request_id.reset(ctx["token"])

    await arq_pool.enqueue_job("nothing", _job_id="one")
    await to_the_end(make_worker({"nothing": functions.nothing}, on_job_start=begin, after_job_end=end, burst=True))
    assert seen == ["one"]


async def test_a_hook_after_a_job_keeps_its_slot(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    order: list[str] = []

    async def note(ctx: dict[str, Any]) -> None:
        order.append("job")

    async def after(ctx: dict[str, Any]) -> None:
        job = await Job("last", ctx["redis"]).status()
        order.append(f"after, last {job.value}")

    await arq_pool.enqueue_job("note", _job_id="first")
    await arq_pool.enqueue_job("note", _job_id="last")
    await to_the_end(make_worker({"note": note}, after_job_end=after, max_jobs=1, burst=True))
    assert order == ["job", "after, last queued", "job", "after, last complete"]


async def test_a_hook_after_a_job_ends_with_the_worker(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    began, ends = asyncio.Event(), []

    async def hook(ctx: dict[str, Any]) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    job = await arq_pool.enqueue_job("nothing")
    assert job is not None
    worker = make_worker({"nothing": functions.nothing}, after_job_end=hook)
    running = asyncio.ensure_future(worker.async_run())
    await heard(began)
    assert await job.status() is JobStatus.complete
    worker.handle_sig(signal.SIGTERM)
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await running
    assert ends == ["cancelled"]


async def test_an_error_in_the_hook_after_a_job_ends_the_worker(
    arq_pool: ArqRedis, make_worker: MakeWorker
) -> None:
    async def hook(ctx: dict[str, Any]) -> None:
        raise ZeroDivisionError

    await arq_pool.enqueue_job("nothing")
    with pytest.raises(ZeroDivisionError):
        await to_the_end(make_worker({"nothing": functions.nothing}, after_job_end=hook))
