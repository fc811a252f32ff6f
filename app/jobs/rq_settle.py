"""Settling by RQ's own code what the script does not know: callbacks, webhooks, repeats, retries, rate limits,
dependents, handlers of failures. Blocking, so in threads.
"""

import asyncio
import logging
import sys
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from rq import Retry as RQRetry
from rq.callbacks import execute_success_callback
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.queue import Queue

from app.jobs.running import Ending, Errored, Succeeded, WorkHorseKilled

if TYPE_CHECKING:
    from app.jobs.settle import Settlement
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

_MOST_AT_ONCE = 8


class RQSettler:
    """Settles each in a task and a thread of its own, so that a slow callback holds up nobody else."""

    def __init__(self, worker: "AsyncWorker") -> None:
        self._worker = worker
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)
        self._stopping = Lock()  # RQ keeps the stopped job in one slot of the worker
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, settlement: "Settlement") -> None:
        """Have an ending written down."""
        task = asyncio.create_task(self._settle(settlement))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, settlement: "Settlement") -> None:
        worker = self._worker
        settling = _OneSettlement(worker, settlement, self._stopping)
        try:
            async with self._slots:
                await worker.until_redis_answers(partial(asyncio.to_thread, settling.settle))
        except Exception as exc:
            # a record that RQ cannot read, a handler of failures that fails: the script at least can say so
            logger.exception("Worker %s: RQ's code could not settle job %s", worker.name, settlement.running.job_id)
            settlement.running.is_refused = True
            worker.settler.put(settlement.running, Errored(exc))
            return
        await worker.settler.note_idle()
        worker.executor.settled([settlement], set())


class _OneSettlement:
    """One ending; `settle` may be called again when Redis was away, and calls no callback twice."""

    def __init__(self, worker: "AsyncWorker", settlement: "Settlement", stopping: Lock) -> None:
        self._worker = worker
        self._running = settlement.running
        self._ending: Ending = settlement.ending
        self._ended = settlement.ended
        self._stopping = stopping
        self._has_called = False

    def settle(self) -> None:
        running, worker = self._running, self._worker
        job, queue = running.job, worker.queue_of(running)
        if worker.connection.zscore(queue.started_job_registry.key, running.composite_key) is None:
            logger.warning("job %s ended, but another run has it by now", job.id)
            return
        if running.is_refused:  # what it asked for must not run now
            job._success_callback_name = job._failure_callback_name = job._stopped_callback_name = None  # noqa: SLF001
            job.webhooks = []
        if isinstance(self._ending, Succeeded) and not isinstance(self._ending.value, RQRetry):
            self._call_back(job, self._ending.value)
        if isinstance(self._ending, Succeeded):
            worker._finalize_success(job, queue, running, self._ending.value)  # noqa: SLF001 - RQ's own step
        elif isinstance(self._ending, Errored):
            self._fail(job, queue, running, self._ending.error)
        else:
            with self._stopping:
                job.ended_at = datetime.fromtimestamp(self._ended, UTC)
                worker._stopped_job_id = job.id  # noqa: SLF001 - RQ's mark for handle_job_failure
                worker._handle_stopped_job(job, queue, running)  # noqa: SLF001 - RQ's own step

    def _call_back(self, job: RQJob, value: Any) -> None:
        """The success callback by itself: its errors are the job's, of any class; RQ's step then calls a blank."""
        if self._has_called or not job._success_callback_name:  # noqa: SLF001 - as RQ's own code
            return
        self._has_called = True
        job._result, job._status = value, JobStatus.FINISHED  # noqa: SLF001 - as RQ's step, which callbacks look at
        try:
            execute_success_callback(job, self._worker.death_penalty_class, value)
        except Exception as exc:  # noqa: BLE001 - a callback of the user's
            self._ending = Errored(exc)
        job._success_callback = _called_already  # noqa: SLF001 - it keeps its name

    def _fail(self, job: RQJob, queue: Queue, running: Execution, error: BaseException) -> None:
        if self._running.is_arqs:
            job.retries_left = None  # arq runs again on Retry alone
        if isinstance(error, WorkHorseKilled):
            job.ended_at = datetime.fromtimestamp(self._ended, UTC)
            self._worker.handle_job_failure(job, queue, exc_string=str(error), execution=running)
            return
        try:
            raise error  # noqa: TRY301 - so that an error of the failure callback names it as its context
        except BaseException:  # noqa: BLE001 - whatever the job raised
            self._worker._finalize_failure(job, queue, running, sys.exc_info())  # noqa: SLF001 - RQ's own step


def _called_already(*_args: object) -> None:
    """Stands in for a callback that has been called."""
