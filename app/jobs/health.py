"""arq's health record: a line under a key that ends when its worker does (arq 0.28, `arq.worker`)."""

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rq.queue import Queue
from rq.registry import ScheduledJobRegistry, StartedJobRegistry

from app.jobs.client import DEFAULT_QUEUE, ArqRedis, create_pool
from app.jobs.settings import RedisSettings

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("arq.worker")

KEY_SUFFIX = ":health-check"


def health_key(queue_name: str) -> str:
    """The key of a queue's workers, unless they are given another."""
    return queue_name + KEY_SUFFIX


class HealthRecord:
    """Keeps a worker's health record."""

    def __init__(self, key: str, queue_name: str, interval_seconds: float) -> None:
        self.key = key
        self._queue_name = queue_name
        self.interval_seconds = interval_seconds
        self._next = 0.0
        self._logged: str | None = None

    async def keep(self, redis: ArqRedis, engine: "AsyncWorker") -> float:
        """Write the record if it is time to; seconds until the next."""
        left = self._next - time.monotonic()
        if left > 0:
            return left
        counts = f"{_counts(engine)} queued={await self._queued(redis)}"
        line = f"{datetime.now():%b-%d %H:%M:%S} {counts}"  # noqa: DTZ005 - arq's, in local time
        await redis.set(self.key, line, px=int((self.interval_seconds + 1) * 1000))
        if self._logged is not None and counts != self._logged:
            logger.info("recording health: %s", line)
        self._logged = counts
        pause = max(self.interval_seconds, engine.poll_seconds)
        self._next = time.monotonic() + pause
        return pause

    async def end(self, redis: ArqRedis) -> None:
        """Remove the record."""
        self._next = 0.0
        await redis.delete(self.key)

    async def _queued(self, redis: ArqRedis) -> int:
        pipeline = redis.pipeline(transaction=False)
        pipeline.llen(Queue.redis_queue_namespace_prefix + self._queue_name)
        pipeline.zcard(ScheduledJobRegistry.key_template.format(self._queue_name))
        pipeline.zcard(StartedJobRegistry.key_template.format(self._queue_name))
        return sum(await pipeline.execute())


def _counts(engine: "AsyncWorker") -> str:
    return (
        f"j_complete={engine.jobs_complete} j_failed={engine.jobs_failed} j_retried={engine.jobs_retried} "
        f"j_ongoing={engine.executor.active_count}"
    )


async def async_check_health(
    redis_settings: RedisSettings | None, health_check_key: str | None = None, queue_name: str | None = None
) -> int:
    """0 if a worker has left a record that has not run out, else 1."""
    redis = await create_pool(redis_settings)
    try:
        line = await redis.get(health_check_key or health_key(queue_name or DEFAULT_QUEUE))
    finally:
        await redis.aclose()
    if not line:
        logger.warning("Health check failed: no health check sentinel value found")
        return 1
    logger.info("Health check successful: %s", line)
    return 0


def check_health_with(settings: Mapping[str, Any]) -> int:
    """The same, from a worker's parameters."""
    return asyncio.run(
        async_check_health(
            settings.get("redis_settings"), settings.get("health_check_key"), settings.get("queue_name")
        )
    )
