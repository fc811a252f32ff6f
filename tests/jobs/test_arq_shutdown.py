"""How arq's worker ends: cancelled, closed, by signals, with jobs under way."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from app.jobs import (
    ArqRedis,
    JobStatus,
    RedisSettings,
    Worker,
    create_pool,
    func,
    run_worker,
)
from tests.jobs import functions
from tests.jobs.conftest import MakeWorker, heard


async def test_a_cancelled_worker_gives_its_jobs_back_at_once(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    job = await arq_pool.enqueue_job("forever")
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
    arq_pool: ArqRedis, make_worker: MakeWorker
) -> None:
    begun = asyncio.Event()

    async def start_up(ctx: dict[str, Any]) -> None:
        begun.set()
        await asyncio.Event().wait()

    worker = make_worker({"nothing": functions.nothing}, on_startup=start_up)
    running = asyncio.ensure_future(worker.async_run())
    await heard(begun)
    async with asyncio.timeout(5):
        await worker.close()
    assert running.cancelled()


async def test_nor_does_one_that_is_told_to_stop_by_its_own_start(
    arq_pool: ArqRedis, make_worker: MakeWorker
) -> None:
    async def start_up(ctx: dict[str, Any]) -> None:
        worker.handle_sig(signal.SIGTERM)

    worker = make_worker({"nothing": functions.nothing}, on_startup=start_up)
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await worker.main()


async def test_a_worker_that_handles_signals_is_closed_once_its_jobs_have_ended(
    arq_pool: ArqRedis, make_worker: MakeWorker
) -> None:
    began, may_end, is_shut_down = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(ctx: dict[str, Any]) -> str:
        began.set()
        await may_end.wait()
        return "ended"

    async def shut_down(ctx: dict[str, Any]) -> None:
        is_shut_down.set()

    job = await arq_pool.enqueue_job("wait")
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

    worker = Worker([func(functions.nothing, name="nothing")], redis_pool=pool, burst=True, on_startup=start_up)
    worker.run()
    assert worker.jobs_complete == 1
    assert loops == [loop]


@pytest.mark.usefixtures("no_loop")
def test_without_a_loop_a_worker_sets_one_of_uvloops_that_may_be_used_again(redis_url: str) -> None:
    settings = {
        "functions": [functions.nothing],
        "redis_settings": RedisSettings.from_dsn(redis_url),
        "burst": True,
    }
    run_worker(settings)
    loop = asyncio.get_event_loop()
    assert isinstance(loop, uvloop.Loop)
    assert not loop.is_closed()
    run_worker(settings)
    assert asyncio.get_event_loop() is loop


class Cleanup:
    """A job that cleans up when it is cancelled, for as long as it is told to, and what became of that."""

    def __init__(self) -> None:
        self.began, self.cleans, self.may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.outcome = ""

    async def job(self, _ctx: dict[str, Any]) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cleans.set()
            self.outcome = "cut off"
            await self.may_end.wait()
            self.outcome = "done"


async def test_a_cleanup_after_a_signal_is_waited_for(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    cleanup = Cleanup()
    job = await arq_pool.enqueue_job("job")
    assert job is not None
    worker = make_worker({"job": cleanup.job})
    worker._engine.cleanup_seconds = worker._engine.cleanup_seconds and 0.01  # noqa: SLF001 - were there a limit
    running = asyncio.ensure_future(worker.async_run())
    await heard(cleanup.began)
    worker.handle_sig(signal.SIGTERM)
    await heard(cleanup.cleans)
    asyncio.get_running_loop().call_later(0.2, cleanup.may_end.set)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cleanup.outcome == "done"
    assert await job.status() is JobStatus.queued


async def test_a_second_signal_cuts_it_off(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    cleanup = Cleanup()
    await arq_pool.enqueue_job("job")
    worker = make_worker({"job": cleanup.job})
    running = asyncio.ensure_future(worker.async_run())
    await heard(cleanup.began)
    worker.handle_sig(signal.SIGTERM)
    await heard(cleanup.cleans)
    worker.handle_sig(signal.SIGTERM)
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await running
    assert cleanup.outcome == "cut off"


async def test_a_limit_of_jobs_cuts_none_off(arq_pool: ArqRedis, make_worker: MakeWorker) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def wait(ctx: dict[str, Any]) -> str:
        began.set()
        await may_end.wait()
        return "ended"

    job = await arq_pool.enqueue_job("wait")
    assert job is not None
    worker = make_worker({"wait": wait}, burst=True, max_burst_jobs=1)
    worker._engine.shutdown_grace_seconds = 0.01  # noqa: SLF001 - in place of 25 s
    running = asyncio.ensure_future(worker.async_run())
    await heard(began)
    asyncio.get_running_loop().call_later(0.2, may_end.set)
    await running
    assert await job.result(1) == "ended"


async def test_a_signal_still_ends_a_worker_whose_limit_is_reached(
    arq_pool: ArqRedis, make_worker: MakeWorker
) -> None:
    began = asyncio.Event()
    await arq_pool.enqueue_job("forever")
    worker = make_worker({"forever": functions.forever}, ctx={"started": began}, burst=True, max_burst_jobs=1)
    running = asyncio.ensure_future(worker.async_run())
    await heard(began)
    worker.handle_sig(signal.SIGTERM)
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await running
