"""How arq's worker ends: cancelled, closed, by signals, with jobs, hooks and aborts under way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.jobs import ArqRedis, JobStatus, RedisSettings, Worker, create_pool, func
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
