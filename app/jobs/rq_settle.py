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

from redis.exceptions import RedisError
from rq import Retry as RQRetry
from rq.callbacks import execute_failure_callback, execute_stopped_callback, execute_success_callback
from rq.job import JobStatus
from rq.utils import now

from app.jobs.running import Ending, Errored, Stopped, Succeeded, WorkHorseKilled

if TYPE_CHECKING:
    from app.jobs.settle import Settlement
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

_MOST_AT_ONCE = 8
_MOST_FAILURES = 3
"""After so many it is no hiccup of Redis, but what the job would have written."""
_STOPPED_TEXT = "Job stopped by user, work-horse terminated."


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
                settle = partial(worker.threads.run, settling.settle)
                await worker.until_redis_answers(settle, only_while_away=True)
        except Exception as exc:
            # a record that RQ cannot read: the script at least can say so, and does not ask for its dependents
            logger.exception("Worker %s: RQ's code could not settle job %s", worker.name, settlement.running.job_id)
            settlement.running.is_beyond_rq = True
            worker.settler.put_failure(settlement.running, exc)
            return
        await worker.settler.note_idle()
        worker.executor.settled([settlement], set())


class _OneSettlement:
    """One ending; `settle` may be called again when Redis was away, and calls nothing of the user's twice."""

    def __init__(self, worker: "AsyncWorker", settlement: "Settlement", stopping: Lock) -> None:
        self._worker = worker
        self._running = settlement.running
        self._job = settlement.running.job
        self._queue = worker.queue_of(settlement.running)
        self._ending: Ending = settlement.ending
        self._ended = datetime.fromtimestamp(settlement.ended, UTC)
        self._stopping = stopping
        self._has_called = False
        self._failures = 0

    def settle(self) -> None:
        job = self._job
        if not self._is_ours():
            logger.warning("job %s ended, but another run has it by now", job.id)
            return
        self._call_back()
        if not self._is_ours():
            logger.warning("job %s was taken away while its callback ran", job.id)
            return
        before = dict(vars(job))
        try:
            self._write()
        except (RedisError, OSError):
            vars(job).clear()
            vars(job).update(before)  # it has counted a retry or a repeat
            raise
        if b"crashes" in self._running.raw:
            self._worker.connection.hdel(job.key, "crashes")

    def _is_ours(self) -> bool:
        key = self._queue.started_job_registry.key
        return self._worker.connection.zscore(key, self._running.composite_key) is not None

    def _call_back(self) -> None:
        """Call what the job asked for, once; errors of the callbacks are the job's, of any class."""
        if self._has_called:
            return
        self._has_called = True
        if self._running.is_refused:  # what it asked for must not run now
            return
        ending = self._ending
        if isinstance(ending, Succeeded) and not isinstance(ending.value, RQRetry):
            self._report_success(ending.value)
        if isinstance(self._ending, Errored) and not isinstance(self._ending.error, WorkHorseKilled):
            self._report_failure(self._ending.error)
        if isinstance(ending, Stopped):
            self._report_stop()

    def _report_success(self, value: Any) -> None:
        job = self._job
        job._result, job._status = value, JobStatus.FINISHED  # noqa: SLF001 - as RQ's step, which callbacks look at
        try:
            execute_success_callback(job, self._worker.death_penalty_class, value)
        except BaseException as exc:  # noqa: BLE001 - a callback of the user's, which may also exit
            self._ending = Errored(exc)

    def _report_failure(self, error: BaseException) -> None:
        """The failure callback and the worker's handlers, as rq.worker: _finalize_failure."""
        job, worker = self._job, self._worker
        job._status, job.ended_at = JobStatus.FAILED, self._ended  # noqa: SLF001 - as RQ's step
        try:
            raise error  # noqa: TRY301 - so that an error of the failure callback names it as its context
        except BaseException:  # noqa: BLE001 - whatever the job raised
            try:
                execute_failure_callback(job, worker.death_penalty_class, *sys.exc_info())
            except BaseException as exc:  # noqa: BLE001 - a callback of the user's, which may also exit
                error = exc
        self._ending = Errored(error)
        try:
            worker.handle_exception(job, type(error), error, error.__traceback__)
        except BaseException:
            logger.exception("Worker %s: a handler of failures failed for job %s", worker.name, job.id)

    def _report_stop(self) -> None:
        try:
            execute_stopped_callback(self._job, self._worker.death_penalty_class)
        except BaseException:
            logger.exception("Worker %s: stopped callback for job %s raised", self._worker.name, self._job.id)

    def _write(self) -> None:
        self._have_rq_write()
        if not self._is_ours():
            return
        self._failures += 1  # RQ's code logs an error of Redis, and goes on
        if self._failures < _MOST_FAILURES:
            raise RedisError("RQ's code could not write the ending")
        raise RuntimeError("RQ's code cannot write the ending")

    def _have_rq_write(self) -> None:
        """RQ's own step, whose calls of callbacks find a blank."""
        job, worker, ending = self._job, self._worker, self._ending
        if (seconds := worker.executor.keep_seconds(self._running)) is not None:
            job.result_ttl = job.failure_ttl = seconds
        if isinstance(ending, Succeeded):
            job._success_callback = _called_already  # noqa: SLF001 - it keeps its name
            worker._finalize_success(job, self._queue, self._running, ending.value)  # noqa: SLF001 - RQ's own step
            return
        job.ended_at = self._ended
        if self._running.is_refused or self._running.is_arqs:
            job.retries_left = None  # the one must not run, the other runs again on Retry alone
        if self._running.is_refused:
            job.webhooks = []
        if isinstance(ending, Errored):
            if not isinstance(ending.error, WorkHorseKilled):
                job.heartbeat(now(), job.failure_callback_timeout)
            worker.handle_job_failure(job, self._queue, exc_string=ending.exc_string, execution=self._running)
            return
        with self._stopping:
            worker._stopped_job_id = job.id  # noqa: SLF001 - RQ's mark for handle_job_failure
            worker.handle_job_failure(job, self._queue, exc_string=_STOPPED_TEXT, execution=self._running)


def _called_already(*_args: object) -> None:
    """Stands in for a callback that has been called."""
