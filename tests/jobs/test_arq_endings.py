"""How arq's worker ends: cancelled, closed, by signals, with jobs, hooks and aborts under way."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import uvloop

from app.jobs import (
    ArqRedis,
    AsyncWorker,
    Job,
    JobRequest,
    JobStatus,
    RedisSettings,
    Retry,
    Worker,
    create_pool,
    func,
    run_worker,
)
from tests.jobs import functions

MakeWorker = Callable[..., Worker]


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[ArqRedis]:
    pool = await create_pool(RedisSettings.from_dsn(redis_url))
    yield pool
    await pool.aclose()


@pytest.fixture
async def make_worker(redis_url: str) -> AsyncIterator[MakeWorker]:
    """Makes workers of functions by keyword; those that are still open are closed."""
    made: list[Worker] = []

    def make(functions: dict[str, Any], **options: Any) -> Worker:
        named = [func(function, name=name) for name, function in functions.items()]
        defaults = {"redis_settings": RedisSettings.from_dsn(redis_url), "handle_signals": False}
        made.append(Worker(named, **(defaults | options)))
        return made[-1]

    yield make
    for worker in made:
        await worker.close()


async def heard(event: asyncio.Event) -> None:
    async with asyncio.timeout(20):
        await event.wait()


async def to_the_end(worker: Worker) -> None:
    async with asyncio.timeout(20):
        await worker.async_run()


async def test_a_cancelled_worker_gives_its_jobs_back_at_once(pool: ArqRedis, make_worker: MakeWorker) -> None:
    job = await pool.enqueue_job("forever")
    assert job is not None
    for run in (2, 3, 4, 5):  # three crashes would end the job
        began = asyncio.Event()
        worker = make_worker({"forever": functions.forever}, ctx={"started": began})
        running = asyncio.ensure_future(worker.async_run())
        await heard(began)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await worker.close()
        assert await job.status() is JobStatus.queued
        info = await job.info()
        assert info is not None
        assert info.job_try == run


class ExtraFails(Exception):
    def extra(self) -> dict[str, Any]:
        raise KeyError("no such field")


class ScoreOnly(Retry):
    def __init__(self, score: Any) -> None:
        self.defer_score = score


async def raise_extra_fails(ctx: dict[str, Any]) -> None:
    raise ExtraFails


async def test_an_error_whose_extra_fails_gives_way_to_that_failure(
    pool: ArqRedis, make_worker: MakeWorker
) -> None:
    job = await pool.enqueue_job("raise_extra_fails")
    assert job is not None
    worker = make_worker({"raise_extra_fails": raise_extra_fails}, burst=True)
    await to_the_end(worker)
    assert worker.jobs_failed == 1
    with pytest.raises(KeyError, match="no such field"):
        await job.result(5)


async def test_so_it_does_without_arqs_log_lines(
    pool: ArqRedis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = await pool.enqueue_job("raise_extra_fails")
    assert job is not None
    settings = RedisSettings.from_dsn(redis_url)
    await AsyncWorker(["arq:queue"], redis_settings=settings, functions=[raise_extra_fails]).run(burst=True)
    assert "cannot be told" in caplog.text
    with pytest.raises(KeyError, match="no such field"):
        await job.result(5)


@pytest.mark.parametrize(("score", "runs"), [(5, 2), (None, 2), ("soon", 1)])
async def test_a_retry_that_knows_its_score_only(
    pool: ArqRedis, make_worker: MakeWorker, score: Any, runs: int
) -> None:
    async def again(ctx: dict[str, Any]) -> int:
        if ctx["job_try"] == 1:
            raise ScoreOnly(score)
        return int(ctx["job_try"])

    job = await pool.enqueue_job("again")
    assert job is not None
    worker = make_worker({"again": again}, burst=True, poll_delay=0.01)
    await to_the_end(worker)
    assert (worker.jobs_retried, worker.jobs_failed) == ((1, 0) if runs == 2 else (0, 1))
    if runs == 1:
        with pytest.raises(TypeError):
            await job.result(5)
    else:
        assert await job.result(5) == runs


async def nothing(ctx: dict[str, Any]) -> None:
    pass


async def test_hooks_after_jobs_run_side_by_side(pool: ArqRedis, make_worker: MakeWorker) -> None:
    barrier = asyncio.Barrier(3)

    async def meet_after(ctx: dict[str, Any]) -> None:
        async with asyncio.timeout(10):
            await barrier.wait()

    await pool.enqueue_jobs([JobRequest("nothing") for _ in range(3)])
    await to_the_end(make_worker({"nothing": nothing}, after_job_end=meet_after, burst=True))


async def test_a_hook_after_a_job_may_wait_for_another_job(pool: ArqRedis, make_worker: MakeWorker) -> None:
    results: list[int] = []

    async def ask_for_more(ctx: dict[str, Any]) -> None:
        if ctx["job_id"] == "first":
            job = await ctx["redis"].enqueue_job("multiply", 6, 7)
            results.append(await job.result(10))

    await pool.enqueue_job("nothing", _job_id="first")
    functions_ = {"nothing": nothing, "multiply": functions.multiply}
    await to_the_end(make_worker(functions_, after_job_end=ask_for_more, burst=True))
    assert results == [42]


async def test_a_jobs_hooks_share_its_context(pool: ArqRedis, make_worker: MakeWorker) -> None:
    request_id: ContextVar[str] = ContextVar("request_id", default="none")
    seen: list[str] = []

    async def begin(ctx: dict[str, Any]) -> None:
        ctx["token"] = request_id.set(ctx["job_id"])

    async def end(ctx: dict[str, Any]) -> None:
        seen.append(request_id.get())
        request_id.reset(ctx["token"])

    await pool.enqueue_job("nothing", _job_id="one")
    await to_the_end(make_worker({"nothing": nothing}, on_job_start=begin, after_job_end=end, burst=True))
    assert seen == ["one"]


async def test_a_hook_after_a_job_keeps_its_slot(pool: ArqRedis, make_worker: MakeWorker) -> None:
    order: list[str] = []

    async def note(ctx: dict[str, Any]) -> None:
        order.append("job")

    async def after(ctx: dict[str, Any]) -> None:
        job = await Job("last", ctx["redis"]).status()
        order.append(f"after, last {job.value}")

    await pool.enqueue_job("note", _job_id="first")
    await pool.enqueue_job("note", _job_id="last")
    await to_the_end(make_worker({"note": note}, after_job_end=after, max_jobs=1, burst=True))
    assert order == ["job", "after, last queued", "job", "after, last complete"]


async def test_a_hook_after_a_job_ends_with_the_worker(pool: ArqRedis, make_worker: MakeWorker) -> None:
    began, ends = asyncio.Event(), []

    async def hook(ctx: dict[str, Any]) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    job = await pool.enqueue_job("nothing")
    assert job is not None
    worker = make_worker({"nothing": nothing}, after_job_end=hook)
    running = asyncio.ensure_future(worker.async_run())
    await heard(began)
    assert await job.status() is JobStatus.complete
    worker.handle_sig(signal.SIGTERM)
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await running
    assert ends == ["cancelled"]


async def test_an_error_in_the_hook_after_a_job_ends_the_worker(pool: ArqRedis, make_worker: MakeWorker) -> None:
    async def hook(ctx: dict[str, Any]) -> None:
        raise ZeroDivisionError

    await pool.enqueue_job("nothing")
    with pytest.raises(ZeroDivisionError):
        await to_the_end(make_worker({"nothing": nothing}, after_job_end=hook))


async def life(moment: str, number: str, url: str) -> tuple[int | None, list[str]]:
    """How a worker in a process of its own ends, to which a signal comes at a moment, and what it was at."""
    words = (sys.executable, "-m", "tests.jobs.signalled", moment, number, url)
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode().splitlines()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("moment", "steps"),
    [
        ("connecting", ["connecting"]),
        ("on_startup", ["on_startup", "on_shutdown", "closed"]),
        ("on_shutdown", ["on_startup", "on_shutdown", "closed"]),
    ],
)
async def test_a_signal_at_any_moment_is_a_clean_end(
    redis_url: str, moment: str, number: str, steps: list[str]
) -> None:
    nowhere = "unix:///nowhere/redis.sock"
    assert await life(moment, number, nowhere if moment == "connecting" else redis_url) == (0, steps)


async def test_a_worker_that_is_closed_while_it_starts_up_does_not_work(
    pool: ArqRedis, make_worker: MakeWorker
) -> None:
    begun = asyncio.Event()

    async def start_up(ctx: dict[str, Any]) -> None:
        begun.set()
        await asyncio.Event().wait()

    worker = make_worker({"nothing": nothing}, on_startup=start_up)
    running = asyncio.ensure_future(worker.async_run())
    await heard(begun)
    async with asyncio.timeout(5):
        await worker.close()
    assert running.cancelled()


async def test_nor_does_one_that_is_told_to_stop_by_its_own_start(pool: ArqRedis, make_worker: MakeWorker) -> None:
    async def start_up(ctx: dict[str, Any]) -> None:
        worker.handle_sig(signal.SIGTERM)

    worker = make_worker({"nothing": nothing}, on_startup=start_up)
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await worker.main()


async def test_a_worker_that_handles_signals_is_closed_once_its_jobs_have_ended(
    pool: ArqRedis, make_worker: MakeWorker
) -> None:
    began, may_end, is_shut_down = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(ctx: dict[str, Any]) -> str:
        began.set()
        await may_end.wait()
        return "ended"

    async def shut_down(ctx: dict[str, Any]) -> None:
        is_shut_down.set()

    job = await pool.enqueue_job("wait")
    assert job is not None
    worker = make_worker({"wait": wait}, handle_signals=True, on_shutdown=shut_down)
    running = asyncio.ensure_future(worker.async_run())
    await heard(began)
    closing = asyncio.ensure_future(worker.close())
    may_end.set()
    async with asyncio.timeout(5):
        await closing
    assert running.cancelled()
    assert is_shut_down.is_set()
    assert await job.result(1) == "ended"


@pytest.fixture
def no_loop() -> Iterator[None]:
    """No event loop is set; what the test sets is closed."""
    asyncio.set_event_loop(None)
    yield
    asyncio.get_event_loop().close()
    asyncio.set_event_loop(None)


@pytest.mark.usefixtures("no_loop")
def test_a_worker_runs_in_the_loop_where_its_pool_was_used(redis_url: str) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    pool = loop.run_until_complete(create_pool(RedisSettings.from_dsn(redis_url)))
    loop.run_until_complete(pool.enqueue_job("nothing"))
    loops: list[asyncio.AbstractEventLoop] = []

    async def start_up(ctx: dict[str, Any]) -> None:
        loops.append(asyncio.get_running_loop())

    worker = Worker([func(nothing, name="nothing")], redis_pool=pool, burst=True, on_startup=start_up)
    worker.run()
    assert worker.jobs_complete == 1
    assert loops == [loop]


@pytest.mark.usefixtures("no_loop")
def test_without_a_loop_a_worker_sets_one_of_uvloops_that_may_be_used_again(redis_url: str) -> None:
    settings = {"functions": [nothing], "redis_settings": RedisSettings.from_dsn(redis_url), "burst": True}
    run_worker(settings)
    loop = asyncio.get_event_loop()
    assert isinstance(loop, uvloop.Loop)
    assert not loop.is_closed()
    run_worker(settings)
    assert asyncio.get_event_loop() is loop
