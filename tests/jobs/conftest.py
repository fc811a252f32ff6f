import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
import redis
from rq import Queue
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer

from app.jobs import ArqRedis, AsyncWorker, RedisSettings, Worker, create_pool, func
from tests.jobs import functions

RunWorker = Callable[..., AbstractAsyncContextManager[AsyncWorker]]
MakeWorker = Callable[..., Worker]
Until = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
PLAIN: dict[str, Any] = {"functions": None, "serializer": None}
"""An AsyncWorker as `rq worker` makes it: any function, pickle."""
ALL = [
    functions.multiply,
    functions.fail_async,
    functions.retry_twice,
    functions.forever,
    functions.meet,
    functions.kill_worker_once,
]


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


async def reply(value: Any) -> Any:
    """What is to be asked again by `until`, where asking needs no waiting."""
    return value


def fetch(sync_redis: redis.Redis, job_id: str) -> RQJob:
    """RQ's job, of the queue that speaks JSON."""
    return RQJob.fetch(job_id, connection=sync_redis, serializer=JSONSerializer)


def lose_worker(queue: Queue, *job_ids: str, crashes: int = 0) -> None:
    """Leave waiting jobs as a worker leaves them that was killed, longer than a lease ago."""
    for job_id in job_ids:
        queue.connection.lrem(queue.key, 1, job_id)
        queue.connection.hset(f"rq:job:{job_id}", mapping={"status": "started", "crashes": crashes})
        queue.connection.zadd(f"rq:wip:{queue.name}", {f"{job_id}:{'a' * 32}": 1})


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[ArqRedis]:
    pool = await create_pool(RedisSettings.from_dsn(redis_url), default_queue_name="q", serializer="json")
    yield pool
    await pool.aclose()


@pytest.fixture
def sync_redis(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


@pytest.fixture
def run_worker(redis_url: str) -> RunWorker:
    """Runs a worker in this loop while a block lasts; it must end by itself when told to."""

    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[AsyncWorker]:
        defaults: dict[str, Any] = {"serializer": "json", "functions": ALL, "shutdown_grace_seconds": 0.1}
        queues = options.pop("queues", ["q"])
        url = options.pop("url", redis_url)
        worker = AsyncWorker(queues, redis_settings=RedisSettings.from_dsn(url), **(defaults | options))
        stop = anyio.Event()
        task = asyncio.create_task(worker.run(stop=stop))
        try:
            yield worker
        finally:
            stop.set()
            async with asyncio.timeout(15):
                await task

    return run


@pytest.fixture
def until() -> Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]:
    """Asks again until the answer is true; a condition, not a time, is waited for."""

    async def wait(condition: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(20):
            while not (found := await condition()):
                await asyncio.sleep(0.01)
        return found

    return wait


@pytest.fixture
def queue(sync_redis: redis.Redis) -> Queue:
    return Queue("q", connection=sync_redis)


@pytest.fixture
def burst(redis_url: str) -> Callable[..., AsyncWorker]:
    def run(**options: Any) -> AsyncWorker:
        worker = AsyncWorker(["q"], redis_settings=RedisSettings.from_dsn(redis_url), **options)
        worker.work(burst=True)
        return worker

    return run


@pytest.fixture
async def arq_pool(redis_url: str) -> AsyncIterator[ArqRedis]:
    """As arq makes it: pickle, arq's queue."""
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
