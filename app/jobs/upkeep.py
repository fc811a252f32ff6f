"""What keeps queues whole: due jobs move to their queue, jobs of lost workers run again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.defaults import RQ_KEY_PREFIX
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.scheduler import RQScheduler
from rq.utils import as_text, now, parse_composite_key, utcformat

from app.jobs.budget import is_away
from app.jobs.lua_upkeep import MOVE_DUE, TAKE_BACK, UNSTICK
from app.jobs.running import Running
from app.jobs.values import JobExecutionFailed
from app.jobs.waiting import wait_at_most

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

_MOST_AT_ONCE = 500
_MOST_CRASHES = 3
_LOCK_MARK = "app.jobs.AsyncWorker"
_LOCK_SECONDS = 61
_SHORTEST_PAUSE_SECONDS = 0.001
_MERCY_SECONDS = 2.0
"""Once Redis is back, for all to beat: twice as long as they take to try again."""


class Upkeep:
    """Runs beside the jobs, in the worker's loop."""

    def __init__(self, worker: "AsyncWorker") -> None:
        self._worker = worker
        self._move_due_script = worker.redis.register_script(MOVE_DUE)
        self._take_back_script = worker.redis.register_script(TAKE_BACK)
        self._some_delayed = asyncio.Event()
        self._unstick_script = worker.redis.register_script(UNSTICK)
        # by intermediate list: when each id (bytes, it may be anything) was first seen there
        self._first_seen: dict[str, dict[bytes, float]] = {}

    async def run(self) -> None:
        """Look for due jobs every `poll_seconds` and for lost ones twice a lease, until cancelled."""
        worker = self._worker
        next_repair = 0.0
        while True:
            if time.monotonic() >= next_repair:
                await self._do(self._repair)
                next_repair = time.monotonic() + worker.lease_seconds / 2
            self._some_delayed.clear()
            pause = await self.tick()
            if worker.should_run_maintenance_tasks:
                await worker.until_redis_answers(self._run_rqs_maintenance)
            await wait_at_most(self._some_delayed, max(pause, _SHORTEST_PAUSE_SECONDS))

    async def tick(self) -> float:
        """Move due jobs and do what else is due; seconds until it is to be done again."""
        worker = self._worker
        pauses: list[float | None] = [worker.poll_seconds, await self._do(self.move_due)]
        if worker.on_tick is not None:
            pauses.append(await self._do(worker.on_tick))
        return min(each for each in pauses if each is not None)

    async def _do(self, act: Callable[[], Awaitable[float | None]]) -> float | None:
        """What `act` answers; None if Redis refuses it, which is told, and must not hold up what else is due."""
        worker = self._worker
        try:
            seconds: float | None = await worker.until_redis_answers(act, only_while_away=True)
        except RedisError:
            logger.exception("Worker %s: Redis refuses a part of the upkeep", worker.name)
            return None
        return seconds

    def expect_delayed(self) -> None:
        """A job was delayed here: it may be due before the next look."""
        self._some_delayed.set()

    async def _run_rqs_maintenance(self) -> None:
        """RQ's own clean-ups, which raise on ids that are none; they must not end the worker."""
        try:
            await self._worker.threads.run(self._worker.run_maintenance_tasks)
        except Exception as exc:
            if isinstance(exc, RedisError | OSError) and is_away(exc):
                raise
            logger.exception("Worker %s: RQ's maintenance failed", self._worker.name)
            # the next time is as far away as if it had not failed
            self._worker.last_cleaned_at = now()  # type: ignore[assignment]  # RQ types it None

    async def move_due(self) -> float | None:
        """Put jobs that are due into their queues; seconds until the next one is due, None if there is none."""
        worker = self._worker
        keys = [Queue.redis_queues_keys]
        for queue in worker.queues:
            registry = ScheduledJobRegistry.key_template.format(queue.name)
            keys += (registry, queue.key, RQScheduler.get_locking_key(queue.name))
        if not await worker.redis.exists(*keys[1::3]):  # one plain command while nothing is scheduled
            return None
        arguments: list[Any] = [RQ_KEY_PREFIX, _MOST_AT_ONCE, utcformat(now()), _LOCK_MARK, _LOCK_SECONDS]
        soonest, moved = await self._move_due_script(keys, arguments)
        if moved == _MOST_AT_ONCE:
            return 0.0
        return float(soonest) if soonest else None

    async def _repair(self) -> None:
        if time.monotonic() < self._worker.beats.heard_since + _MERCY_SECONDS:
            return  # Redis was away: leases may have ended of workers that live, ours among them
        for queue in self._worker.queues:
            await self._take_back(queue)
            await self._unstick(queue)

    async def _take_back(self, queue: Queue) -> None:
        registry = StartedJobRegistry.key_template.format(queue.name)
        while True:  # so many a call: a worker may have run a thousand
            arguments: list[Any] = [RQ_KEY_PREFIX, queue.name, _MOST_CRASHES]
            back, poison, broken = await self._take_back_script([registry], arguments)
            for member, why in broken:
                logger.warning("job %r of a lost worker cannot be taken back: %s", member, as_text(why))
            if not back and not poison:
                return
            for job_id in back:
                logger.warning("job %r: its worker is lost; it runs again soon", job_id)
            for member in poison:
                await self._bury(queue, as_text(member))

    async def _bury(self, queue: Queue, member: str) -> None:
        """A job that has ended too many workers fails."""
        worker = self._worker
        job_id, execution_id = parse_composite_key(member)
        raw: dict[bytes, bytes] = await worker.redis.execute_command(
            "HGETALL", RQJob.redis_job_namespace_prefix + job_id
        )
        running = Running(
            queue_name=queue.name,
            job_id=job_id,
            execution_id=execution_id,
            raw=raw,
            started=worker.redis_time(),
            worker_name=worker.name,
            connection=worker.connection,
            serializer=worker.serializer,
        )
        reason = f"{_MOST_CRASHES} workers were lost while they ran this job; it is not tried again"
        logger.error("job %s: %s", job_id, reason)
        worker.executor.fail(running, JobExecutionFailed(reason))

    async def _unstick(self, queue: Queue) -> None:
        """Ids between list and start for longer than a lease belong to a stock worker that died there."""
        key = queue.intermediate_queue_key
        seen = self._first_seen.setdefault(key, {})
        there: set[Any] = set(await self._worker.redis.execute_command("LRANGE", key, 0, -1))
        here = time.monotonic()
        for job_id in there:
            seen.setdefault(job_id, here)
        for job_id in seen.keys() - there:
            del seen[job_id]
        old = [job_id for job_id in there if here - seen[job_id] > self._worker.lease_seconds]
        if old:
            await self._unstick_script([key, queue.key], old)
            logger.warning("queue %s: %d jobs were stuck before their start; they run again", queue.name, len(old))
