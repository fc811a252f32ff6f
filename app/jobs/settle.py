"""Writing down how jobs ended: the plain ones in batches, one round trip each; the rest by RQ's own code.

What is buffered is what `rq.worker.base.BaseWorker.handle_job_success` and `handle_job_failure` buffer, by the same
RQ methods.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.job import JobStatus as RQStatus
from rq.job_lifecycle import format_exc_info
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry
from rq.results import Result
from rq.utils import now

from app.jobs.running import AskedAgain, Ending, Errored, GivenBack, Running, Stopped, Succeeded

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

MOST_AT_ONCE = 64
"""Larger batches hold Redis for milliseconds (JOBS.md 9)."""
_STOPPED_TEXT = "Job stopped by user, work-horse terminated."

Settlement = tuple[Running, Ending]


class Settler:
    """Settles endings in the order they come."""

    def __init__(self, worker: "AsyncWorker") -> None:
        self._worker = worker
        self._endings: asyncio.Queue[Settlement] = asyncio.Queue()
        self._rq_code = asyncio.Lock()  # RQ keeps the stopped job in one slot of the worker

    def put(self, running: Running, ending: Ending) -> None:
        """Have an ending written down."""
        self._endings.put_nowait((running, ending))

    async def run(self) -> None:
        """Settle until cancelled; what Redis does not take now is tried again until it does."""
        while True:
            batch = [await self._endings.get()]
            while len(batch) < MOST_AT_ONCE and not self._endings.empty():
                batch.append(self._endings.get_nowait())
            await self._write(batch)
            for running, _ in batch:
                self._worker.forget(running)

    async def _write(self, batch: Sequence[Settlement]) -> None:
        await self._worker.until_redis_answers(lambda: self._settle(batch))

    async def _settle(self, batch: Sequence[Settlement]) -> None:
        ours = await self._still_ours(batch)
        plain = [each for each in ours if not each[0].needs_rq(each[1])]
        if plain:
            await self._settle_plain(plain)
        for running, ending in ours:
            if running.needs_rq(ending):
                async with self._rq_code:
                    await asyncio.to_thread(self._settle_by_rq, running, ending)

    async def _still_ours(self, batch: Sequence[Settlement]) -> list[Settlement]:
        """Those whose execution is still registered: a late finisher must not overwrite a newer run."""
        pipeline = self._worker.redis.pipeline(transaction=False)
        for running, _ in batch:
            pipeline.zscore(running.job.started_job_registry.key, running.execution.composite_key)
        scores = await pipeline.execute()
        for (running, _), score in zip(batch, scores, strict=True):
            if score is None:
                logger.warning("job %s ended, but its execution is no longer registered", running.job.id)
        return [each for each, score in zip(batch, scores, strict=True) if score is not None]

    async def _settle_plain(self, batch: Sequence[Settlement]) -> None:
        pipeline = self._worker.redis.pipeline(transaction=True)
        for running, ending in batch:
            self._buffer(running, ending, pipeline)
        for running, _ in batch:
            pipeline.exists(running.job.dependents_key)
        answers = await pipeline.execute()
        for (running, ending), has_dependents in zip(batch, answers[-len(batch) :], strict=True):
            if has_dependents and not isinstance(ending, GivenBack | AskedAgain):
                queue = self._worker.queue_of(running.job)
                await asyncio.to_thread(queue.enqueue_dependents, running.job)

    def _buffer(self, running: Running, ending: Ending, pipeline: Any) -> None:
        worker, job, execution = self._worker, running.job, running.execution
        execution.delete(job=job, pipeline=pipeline)
        if isinstance(ending, GivenBack):
            pipeline.hset(job.key, mapping={"status": RQStatus.QUEUED, "worker_name": ""})
            pipeline.lpush(Queue.redis_queue_namespace_prefix + job.origin, job.id)
            return
        job.ended_at = now()
        duration = job.ended_at - (job.started_at or job.ended_at)
        worker.increment_total_working_time(duration, pipeline)
        if isinstance(ending, Succeeded):
            worker.increment_successful_job_count(pipeline)
            self._buffer_success(running, ending, pipeline)
            return
        worker.increment_failed_job_count(pipeline)
        if isinstance(ending, AskedAgain):
            self._buffer_retry(running, ending, pipeline)
        else:
            self._buffer_failure(running, ending, pipeline)

    def _buffer_success(self, running: Running, ending: Succeeded, pipeline: Any) -> None:
        job = running.job
        job._result = ending.value  # noqa: SLF001 - as BaseWorker._finalize_success
        job._status = RQStatus.FINISHED  # noqa: SLF001 - likewise
        ttl = job.get_result_ttl(self._worker.default_result_ttl)
        job._handle_success(ttl, pipeline=pipeline, **self._record(running))  # noqa: SLF001 - likewise
        job.cleanup(ttl, pipeline=pipeline, remove_from_queue=False)

    def _buffer_failure(self, running: Running, ending: Ending, pipeline: Any) -> None:
        job = running.job
        stopped = isinstance(ending, Stopped)
        job.set_status(RQStatus.STOPPED if stopped else RQStatus.FAILED, pipeline=pipeline)
        text = ending.exc_string if isinstance(ending, Errored) else _STOPPED_TEXT
        if stopped:
            ttl = DEFAULT_FAILURE_TTL if job.failure_ttl is None else job.failure_ttl
            job.failed_job_registry.add(job, ttl=ttl, exc_string=text, pipeline=pipeline)
            Result.create(
                job, Result.Type.STOPPED, ttl=ttl, exc_string=text, pipeline=pipeline, **self._record(running)
            )
        else:
            job._handle_failure(text, pipeline, **self._record(running))  # noqa: SLF001 - as RQ's worker

    def _buffer_retry(self, running: Running, ending: AskedAgain, pipeline: Any) -> None:
        job = running.job
        job.number_of_retries = running.job_try
        Result.create_retried(job, job.failure_ttl, None, pipeline=pipeline, **self._record(running))
        due = now() + timedelta(seconds=ending.delay_seconds)
        status = RQStatus.SCHEDULED if ending.delay_seconds > 0 else RQStatus.QUEUED
        pipeline.hset(job.key, mapping={"status": status, "worker_name": "", "number_of_retries": running.job_try})
        if status is RQStatus.SCHEDULED:
            pipeline.zadd(ScheduledJobRegistry.key_template.format(job.origin), {job.id: due.timestamp()})
        else:
            pipeline.lpush(Queue.redis_queue_namespace_prefix + job.origin, job.id)

    def _record(self, running: Running) -> dict[str, Any]:
        return {
            "worker_name": self._worker.name,
            "execution_id": running.execution.id,
            "execution_started_at": running.execution.created_at,
            "execution_ended_at": running.job.ended_at,
        }

    def _settle_by_rq(self, running: Running, ending: Ending) -> None:
        """RQ's own code, in a thread: callbacks, webhooks, repeats, retries, rate limits."""
        worker, job, execution = self._worker, running.job, running.execution
        queue = worker.queue_of(job)
        try:
            if isinstance(ending, Succeeded):
                worker._finalize_success(job, queue, execution, ending.value)  # noqa: SLF001 - RQ's own step
            elif isinstance(ending, Errored):
                info = (type(ending.error), ending.error, ending.error.__traceback__)
                worker._finalize_failure(job, queue, execution, info)  # noqa: SLF001 - RQ's own step
            else:
                job.ended_at = now()
                worker._stopped_job_id = job.id  # noqa: SLF001 - RQ's mark for handle_job_failure
                worker._handle_stopped_job(job, queue, execution)  # noqa: SLF001 - RQ's own step
        except (RedisError, OSError):
            raise
        except Exception as exc:  # noqa: BLE001 - a callback of the user's: the job fails, as with RQ
            info = (type(exc), exc, exc.__traceback__)
            worker.handle_job_failure(job, queue, exc_string=format_exc_info(info), execution=execution)
