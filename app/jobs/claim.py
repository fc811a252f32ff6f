"""Taking jobs from the queues, as many as there are free slots, and starting them in one round trip."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import as_text, now
from rq.worker import WorkerStatus

from app.jobs.job import ABORT_FIELD
from app.jobs.lua import CLAIM
from app.jobs.running import Running
from app.jobs.settle import MOST_AT_ONCE

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

_BLOCK_SECONDS = 5.0
_BLOCK_SECONDS_MANY_QUEUES = 0.5
_SUSPENDED_SECONDS = 1.0
_LAST_ANSWER_SECONDS = 1.0

Taken = tuple[str, bytes]
"""(queue key, job id as it lay there: a foreign one may be anything)"""


class Claimer:
    """The worker's claiming loop."""

    def __init__(
        self, worker: "AsyncWorker", *, burst: bool, job_limit: int | None, max_idle_seconds: float | None
    ) -> None:
        self._worker = worker
        self._burst = burst
        self._left = job_limit
        self._max_idle_seconds = max_idle_seconds
        self._busy_at = time.monotonic()
        self._aborted: set[str] = set()

    async def claim_until_stopped(self) -> None:
        """Claim and start jobs until the worker is told to stop, the limit is reached, or a burst is over."""
        stopped = asyncio.ensure_future(self._worker.stop_event.wait())
        try:
            while not stopped.done():
                if not await self._step(stopped):
                    return
        finally:
            stopped.cancel()
            await asyncio.gather(stopped, return_exceptions=True)

    async def _step(self, stopped: "asyncio.Future[None]") -> bool:
        """One round: claim what fits, or wait for something to happen; False when there is nothing more to do."""
        worker = self._worker
        free = min(worker.max_jobs - len(worker.running), MOST_AT_ONCE)
        if self._left is not None:
            free = min(free, self._left)
            if self._left <= 0:
                return False
        if free <= 0:
            await self._wait(stopped, self._slot_freed())
            return True
        taken = await self._until_answer(stopped, free)
        if taken is None:
            return True
        if taken:
            self._busy_at = time.monotonic()
            await self._start(taken)
            return True
        return await self._idle(stopped)

    async def _until_answer(self, stopped: "asyncio.Future[None]", free: int) -> list[Taken] | None:
        claiming = asyncio.ensure_future(self._worker.until_redis_answers(lambda: self._take(free)))
        await self._wait(stopped, claiming, grace_seconds=_LAST_ANSWER_SECONDS)
        if not claiming.done() or claiming.cancelled():
            return None
        taken: list[Taken] = claiming.result()
        return taken

    async def _take(self, free: int) -> list[Taken]:
        worker = self._worker
        keys = [WORKERS_SUSPENDED]
        for queue in worker.queues:
            keys += [queue.key, queue.intermediate_queue_key]
        answer = await worker.redis.eval(CLAIM, len(keys), *keys, str(free))
        if answer == [b"suspended"]:
            await asyncio.sleep(_SUSPENDED_SECONDS)
            return []
        return [(as_text(queue_key), job_id) for queue_key, job_id in answer]

    async def _idle(self, stopped: "asyncio.Future[None]") -> bool:
        """Nothing waits: a burst is over once nothing runs; otherwise block until something comes."""
        worker = self._worker
        if self._burst:
            if not worker.running:
                return False
            await self._wait(stopped, self._slot_freed())
            return True
        idle_seconds = 0.0 if worker.running else time.monotonic() - self._busy_at
        if self._max_idle_seconds is not None and idle_seconds > self._max_idle_seconds:
            return False
        one = len(worker.queues) == 1
        block = _BLOCK_SECONDS if one else _BLOCK_SECONDS_MANY_QUEUES
        if self._max_idle_seconds is not None:
            block = min(block, max(0.1, self._max_idle_seconds / 2))
        await self._wait(stopped, asyncio.ensure_future(worker.until_redis_answers(lambda: self._block(block))))
        return True

    async def _block(self, seconds: float) -> None:
        """Wait for the first queue, taking nothing: LMOVE of a list onto itself at the same end changes nothing."""
        key = self._worker.queues[0].key
        await self._worker.blocking_redis.execute_command("BLMOVE", key, key, "LEFT", "LEFT", seconds)

    def _slot_freed(self) -> "asyncio.Future[Any]":
        self._worker.slot_freed.clear()
        return asyncio.ensure_future(self._worker.slot_freed.wait())

    async def _wait(
        self, stopped: "asyncio.Future[None]", happening: "asyncio.Future[Any]", *, grace_seconds: float = 0.0
    ) -> None:
        """Until it happens or the worker is told to stop, whichever is first.

        What is under way when the stop comes has a second to end: an answer that is dropped would leave its
        jobs stuck for a lease.
        """
        try:
            await asyncio.wait({stopped, happening}, return_when=asyncio.FIRST_COMPLETED)
            if grace_seconds:
                await asyncio.wait({happening}, timeout=grace_seconds)
        finally:
            if not happening.done():
                happening.cancel()
                await asyncio.gather(happening, return_exceptions=True)

    async def _start(self, taken: Sequence[Taken]) -> None:
        worker = self._worker
        with anyio.CancelScope(shield=True):  # claimed jobs are in our hands: start or give back, never drop
            jobs = await worker.until_redis_answers(lambda: self._fetch(taken))
            if not jobs:
                return
            started = await worker.until_redis_answers(lambda: self._register(jobs))
        if self._left is not None:
            self._left -= len(started)
        for running in started:
            worker.start(running)

    async def _fetch(self, taken: Sequence[Taken]) -> list[RQJob]:
        """The jobs behind ids; what cannot be read is dropped from its list, and never ends the worker."""
        worker = self._worker
        pipeline = worker.redis.pipeline(transaction=False)
        for _, job_id in taken:
            pipeline.hgetall(RQJob.redis_job_namespace_prefix.encode() + job_id)
        answers = await pipeline.execute()
        jobs: list[RQJob] = []
        unreadable: list[Taken] = []
        self._aborted.clear()
        for (queue_key, job_id), raw in zip(taken, answers, strict=True):
            job = self._restore(job_id, raw) if raw else None
            if job is None:
                unreadable.append((queue_key, job_id))
                continue
            jobs.append(job)
            if raw.get(ABORT_FIELD.encode()):
                self._aborted.add(job.id)
        for queue_key, job_id in unreadable:
            logger.warning("job %r cannot be read or is gone; it is dropped from %s", job_id, queue_key)
            await worker.redis.execute_command("LREM", f"{queue_key}:intermediate", 1, job_id)
        return jobs

    def _restore(self, job_id: bytes, raw: dict[bytes, bytes]) -> RQJob | None:
        try:
            job = RQJob(job_id.decode(), connection=self._worker.connection, serializer=self._worker.serializer)
            job.restore(raw)
        except (ValueError, TypeError, KeyError, NoSuchJobError):
            return None
        return job

    async def _register(self, jobs: Sequence[RQJob]) -> list[Running]:
        """Record the start of jobs as RQ does (`prepare_execution`, `prepare_job_execution`), in one round trip."""
        worker = self._worker
        ttl = int(worker.lease_seconds) + 1
        pipeline: Any = worker.redis.pipeline(transaction=True)
        pipeline.hset(worker.key, "state", WorkerStatus.BUSY)
        executions = []
        for job in jobs:
            execution = Execution.create(job, ttl, pipeline=pipeline, worker_name=worker.name)
            job.heartbeat(now(), ttl, pipeline=pipeline)
            job.prepare_for_execution(worker.name, pipeline=pipeline)
            pipeline.persist(job.key)
            pipeline.lrem(Queue.redis_queue_namespace_prefix + job.origin + ":intermediate", 1, job.id)
            executions.append(execution)
        for job in jobs:
            pipeline.hincrby(job.key, "job_try", 1)
        answers = await pipeline.execute()
        started = []
        for job, execution, tries in zip(jobs, executions, answers[-len(jobs) :], strict=True):
            worker.executions[execution.id] = execution
            job.started_at = now()
            started.append(Running(job, execution, int(tries), is_stopped=job.id in self._aborted))
        return started
