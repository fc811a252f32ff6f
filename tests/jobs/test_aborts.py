"""arq's abort of a running job: it arrives whatever becomes of the command, and the job has the last word."""

import asyncio
from typing import Any
from urllib.parse import urlparse

import pytest

from app.jobs import ArqRedis, JobExecutionFailed, JobStatus
from app.jobs.job import ABORT_FIELD
from tests.jobs import functions
from tests.jobs.conftest import RunWorker, Until, heard
from tests.support.proxy import Proxy


async def swallow(ctx: dict[str, Any]) -> str:
    ctx["started"].set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "partial"
    return "never"


async def fail_at_the_end(ctx: dict[str, Any]) -> None:
    ctx["started"].set()
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("cleanup failed")


async def test_an_abort_while_nobody_listens_is_noticed_by_who_subscribes_again(
    pool: ArqRedis, run_worker: RunWorker
) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(ctx=ctx, lease_seconds=600):
        job = await pool.enqueue_job("forever")
        assert job is not None
        await heard(ctx["started"])
        await pool.client_kill_filter(_type="pubsub", skipme=False)
        assert await job.abort(timeout=10) is True


async def test_a_heartbeat_notices_an_abort_whose_command_was_lost(pool: ArqRedis, run_worker: RunWorker) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(ctx=ctx, lease_seconds=0.5):
        job = await pool.enqueue_job("forever")
        assert job is not None
        await heard(ctx["started"])
        await pool.hset(f"rq:job:{job.job_id}", ABORT_FIELD, "1")  # as the script, without its message
        with pytest.raises(asyncio.CancelledError):
            await job.result(10)


async def test_an_abort_while_the_claims_answer_is_on_its_way(
    pool: ArqRedis, run_worker: RunWorker, redis_url: str, until: Until
) -> None:
    ctx = {"started": asyncio.Event()}
    with Proxy(urlparse(redis_url).path) as wire:
        async with run_worker(ctx=ctx, lease_seconds=600, url=f"redis://127.0.0.1:{wire.port}") as worker:

            async def listens() -> bool:
                ((_, count),) = await pool.pubsub_numsub(worker.pubsub_channel_name)
                return bool(count)

            await until(listens)
            wire.held_word = b"forever()"
            job = await pool.enqueue_job("forever")
            assert job is not None

            async def is_claimed() -> bool:
                return await job.status() is JobStatus.in_progress

            async def is_told() -> bool:
                return bool(worker.executor.early_stops)

            await until(is_claimed)
            aborting = asyncio.ensure_future(job.abort(timeout=10))
            await until(is_told)
            wire.let_go()
            assert await aborting is True
            assert not ctx["started"].is_set()
            assert not worker.executor.early_stops


async def test_a_job_that_ends_well_in_spite_of_it_was_not_aborted(pool: ArqRedis, run_worker: RunWorker) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(ctx=ctx, functions=[swallow]):
        job = await pool.enqueue_job("swallow")
        assert job is not None
        await heard(ctx["started"])
        assert await job.abort(timeout=10) is False
        assert await job.result(1) == "partial"


async def test_nor_was_one_that_fails_in_its_cleanup(pool: ArqRedis, run_worker: RunWorker) -> None:
    ctx = {"started": asyncio.Event()}
    async with run_worker(ctx=ctx, functions=[fail_at_the_end, functions.forever]):
        job = await pool.enqueue_job("fail_at_the_end")
        assert job is not None
        await heard(ctx["started"])
        with pytest.raises(JobExecutionFailed, match="cleanup failed"):
            await job.abort(timeout=10)
