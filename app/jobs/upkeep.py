"""What keeps queues whole: due jobs move to their queue, jobs of lost workers run again."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.defaults import RQ_KEY_PREFIX
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.utils import now, utcformat

from app.jobs.lua import MOVE_DUE, TAKE_BACK, UNSTICK

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

_MOST_AT_ONCE = 500
_MOST_CRASHES = 3
_DUE_SECONDS = 0.5


class Upkeep:
    """Runs beside the jobs, in the worker's loop."""

    def __init__(self, worker: "AsyncWorker") -> None:
        self._worker = worker
        # by intermediate list: when each id (bytes, it may be anything) was first seen there
        self._first_seen: dict[str, dict[bytes, float]] = {}

    async def run(self) -> None:
        """Look for due jobs twice a second and for lost ones twice a lease, until cancelled."""
        next_repair = 0.0
        while True:
            await self._worker.until_redis_answers(self._move_due)
            if time.monotonic() >= next_repair:
                await self._worker.until_redis_answers(self._repair)
                next_repair = time.monotonic() + self._worker.lease_seconds / 2
            if self._worker.should_run_maintenance_tasks:
                await self._worker.until_redis_answers(self._run_rqs_maintenance)
            await asyncio.sleep(_DUE_SECONDS)

    async def _run_rqs_maintenance(self) -> None:
        """RQ's own clean-ups, which raise on ids that are none; they must not end the worker."""
        try:
            await asyncio.to_thread(self._worker.run_maintenance_tasks)
        except (RedisError, OSError):
            raise
        except Exception:
            logger.exception("Worker %s: RQ's maintenance failed", self._worker.name)
            # the next time is as far away as if it had not failed
            self._worker.last_cleaned_at = now()  # type: ignore[assignment]  # RQ types it None

    async def _move_due(self) -> None:
        for queue in self._worker.queues:
            await self._worker.redis.eval(
                MOVE_DUE,
                3,
                ScheduledJobRegistry.key_template.format(queue.name),
                queue.key,
                Queue.redis_queues_keys,
                str(time.time()),
                str(_MOST_AT_ONCE),
                utcformat(now()),
                RQJob.redis_job_namespace_prefix,
            )

    async def _repair(self) -> None:
        for queue in self._worker.queues:
            await self._take_back(queue)
            await self._unstick(queue)

    async def _take_back(self, queue: Queue) -> None:
        registry = StartedJobRegistry.key_template.format(queue.name)
        back, poison = await self._worker.redis.eval(
            TAKE_BACK, 2, registry, queue.key, str(time.time()), str(_MOST_CRASHES), RQ_KEY_PREFIX
        )
        for job_id in back:
            logger.warning("job %r: its worker is lost; it runs again", job_id)
        if poison:  # RQ's own clean-up fails what is left in the registry
            await asyncio.to_thread(queue.started_job_registry.cleanup)

    async def _unstick(self, queue: Queue) -> None:
        """Ids between list and start for longer than a lease belong to a worker that died there."""
        key = queue.intermediate_queue_key
        seen = self._first_seen.setdefault(key, {})
        there: set[Any] = set(await self._worker.redis.lrange(key, 0, -1))
        here = time.monotonic()
        for job_id in there:
            seen.setdefault(job_id, here)
        for job_id in seen.keys() - there:
            del seen[job_id]
        old = [job_id for job_id in there if here - seen[job_id] > self._worker.lease_seconds]
        if old:
            await self._worker.redis.eval(UNSTICK, 2, key, queue.key, *old)
            logger.warning("queue %s: %d jobs were stuck before their start; they run again", queue.name, len(old))
