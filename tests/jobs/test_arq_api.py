"""What code expects that has only changed its import: arq's attributes, types and names (arq 0.28)."""

import json
import pickle
from typing import Any

import pytest
from redis import asyncio as aioredis
from rq.serializers import JSONSerializer

from app.jobs import ArqRedis, Job, JobStatus, RedisSettings, Worker, create_pool


@pytest.fixture
async def arq_pool(redis_url: str) -> Any:
    pool = await create_pool(RedisSettings.from_dsn(redis_url))
    yield pool
    await pool.aclose()


def dumps(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


async def multiply(ctx: dict[str, Any], left: int, right: int) -> int:
    return left * right


async def run_all(redis_url: str, *functions: Any, **options: Any) -> Worker:
    """Runs a worker of these functions until the queue is empty."""
    settings = RedisSettings.from_dsn(redis_url)
    worker = Worker(
        functions, redis_settings=settings, burst=True, handle_signals=False, poll_delay=0.01, **options
    )
    try:
        await worker.async_run()
    finally:
        await worker.close()
    return worker


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
