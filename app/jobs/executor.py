"""The jobs in work: started as tasks, stopped, given back, and handed on to be settled."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import rq.job
from rq.timeouts import JobTimeoutException

from app.jobs.arq_log import log_end, log_start
from app.jobs.calls import Call, JobRefused, perform, timeout_of
from app.jobs.functions import CronFunction, RetryJob
from app.jobs.ids import from_rq_id
from app.jobs.job import ABORT_FIELD, due_seconds
from app.jobs.running import AskedAgain, Ending, Errored, GivenBack, Running, Stopped, Succeeded, WorkHorseKilled
from app.jobs.settle import Settlement
from app.jobs.values import JobExecutionFailed, Retry, displayed

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

Hook = Callable[[dict[str, Any]], Awaitable[Any]]


class JobExited(JobExecutionFailed):
    """A job asked the process to exit; it is the job that ends."""


class Executor:
    """Runs claimed jobs."""

    def __init__(self, worker: "AsyncWorker") -> None:
        self._worker = worker
        self.running: dict[str, Running] = {}  # by execution id; claimed and not yet settled
        self.active_count = 0  # of these, those that hold a slot: their task, or arq's hook after it, has not ended
        self.active_by_queue: Counter[str] = Counter()
        self.started_count = 0
        self.early_stops: list[tuple[Callable[[Running], bool], bool]] = []  # came while a claim was on its way

    @property
    def unsettled_count(self) -> int:
        """Jobs that have ended, which Redis does not know yet."""
        return len(self.running) - self.active_count

    @property
    def has_suspect(self) -> bool:
        """Whether a job is in work that may have ended two workers."""
        return any(b"crashes" in each.raw and (each.whole(b"crashes") or 0) > 1 for each in self.running.values())

    def start(self, running: Running) -> None:
        """Run a claimed job as a task, unless it is not to run after all."""
        worker = self._worker
        self.running[running.id] = running
        self.started_count += 1
        try:
            ending = self._read(running)
        except JobRefused as exc:
            running.is_refused = True
            ending = Errored(exc)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever is wrong with a job, or its module, fails it
            ending = Errored(exc)
        if ending is not None:
            self._put(running, ending)
            return
        self.active_count += 1
        self.active_by_queue[running.queue_name] += 1
        running.has_slot = True
        running.task = asyncio.create_task(self._perform(running), context=running.context)
        running.task.add_done_callback(lambda _task: self._ended(running))
        for is_meant, is_abort in self.early_stops:
            if is_meant(running):
                _stop(running, is_abort=is_abort)
        if worker.stop_event.is_set() and worker.is_cold:
            self.give_back(running)

    def _read(self, running: Running) -> Ending | None:
        """Find out what the job calls; an ending if it is not to run.

        Raises:
            anything that is wrong with it.
        """
        is_aborted = bool(running.raw.get(ABORT_FIELD.encode())) and self._worker.allow_abort_jobs
        try:
            running.call = call = self._worker.reader.read(running)
        except (Exception, SystemExit):
            if not is_aborted:
                raise
            return Stopped()
        if is_aborted:
            running.is_arqs = True  # nobody else leaves that mark
            return Stopped()
        if not call.is_arqs:
            return None
        expires_at = running.raw.get(b"expires_at")
        if expires_at and float(expires_at) < running.started:
            return Errored(JobExecutionFailed("job expired"), is_expired=True)
        limits = call.limits
        most = self._worker.max_tries if limits is None or limits.max_tries is None else limits.max_tries
        if running.job_try > most:
            return Errored(JobExecutionFailed(f"max {most} retries exceeded"), most_tries=most)
        return None

    def fail(self, running: Running, error: BaseException) -> None:
        """Have a job recorded as failed that does not run here."""
        running.is_refused = True
        self.running[running.id] = running
        self._put(running, Errored(error))

    async def _perform(self, running: Running) -> Any:
        rq.job._current_job.set(running.job)  # noqa: SLF001 - as `Job.perform`; this task's own context
        call = running.call
        if call is None:
            raise JobExecutionFailed("the job was not read")
        timeout_seconds = timeout_of(running, call, self._worker.job_timeout)
        try:
            if call.is_arqs:
                return await self._perform_arqs(running, call, timeout_seconds)
            return await perform(call, call.args, timeout_seconds, self._worker.threads)
        except (SystemExit, KeyboardInterrupt) as exc:
            raise JobExited(f"the job raised {exc!r}") from exc

    async def _perform_arqs(self, running: Running, call: Call, timeout_seconds: float) -> Any:
        worker = self._worker
        ctx = running.ctx = arq_context(running, worker.ctx, worker.arq_redis or worker.redis)
        await self._hook(worker.on_job_start, ctx)
        if worker.log_arqs_jobs:
            log_start(running, worker.redis_time())
        try:
            return await perform(call, (ctx, *call.args), timeout_seconds, worker.threads)
        except JobTimeoutException as exc:
            raise TimeoutError(str(exc)) from exc  # arq's
        finally:
            await self._hook(worker.on_job_end, ctx)

    async def _hook(self, hook: Hook | None, ctx: dict[str, Any]) -> None:
        """arq: an exception in a hook ends the worker."""
        if hook is None:
            return
        try:
            await hook(ctx)
        except Exception as exc:
            self._worker.end_with(exc)
            raise

    def _ended(self, running: Running) -> None:
        worker = self._worker
        if running.is_lost:
            self._leave(running)
        else:
            if worker.after_job_end is None or running.ctx is None:
                self._free_slot(running)
            try:
                ending = self._ending(running)
            except Exception as exc:  # noqa: BLE001 - what a subclass of arq's Retry makes of its delay
                ending = Errored(exc)
            self._put(running, ending)
        worker.wake()

    def _put(self, running: Running, ending: Ending) -> None:
        worker = self._worker
        if isinstance(ending, Succeeded):
            worker.jobs_complete += 1
        elif isinstance(ending, Errored | Stopped):
            worker.jobs_failed += 1
        else:
            worker.jobs_retried += 1
        try:
            self._tell(running, ending)
        except Exception as exc:
            logger.exception("Worker %s: how job %s ended cannot be told", worker.name, running.job_id)
            if isinstance(ending, Errored):
                ending = Errored(exc)  # as arq: an error whose `extra` fails gives way to that one
        worker.settler.put(running, ending)

    def _tell(self, running: Running, ending: Ending) -> None:
        """Log it.

        Raises:
            whatever the `extra` of the job's error does.
        """
        worker = self._worker
        if worker.log_arqs_jobs and running.is_arqs:
            log_end(running, ending, worker.redis_time(), with_results=worker.log_results)
        elif isinstance(ending, Errored) and (running.is_refused or not running.needs_rq(ending)):
            self._log(running, ending)

    def _log(self, running: Running, ending: Errored) -> None:
        """As rq.worker.handle_exception; arq's errors may bring fields of their own."""
        extra = getattr(ending.error, "extra", None)
        fields = {"queue": running.queue_name, "job_id": running.job_id}
        given = extra() if callable(extra) else extra
        if isinstance(given, dict):
            fields = {**given, **fields}
        logger.error(
            "Worker %s: job %s: exception raised while executing (%s)\n%s",
            self._worker.name,
            running.job_id,
            type(ending.error).__name__,
            ending.exc_string,
            extra=fields,
        )

    def _ending(self, running: Running) -> Ending:
        task = running.task
        if running.is_stopped or task is None or (running.is_aborted and task.cancelled()):
            return Stopped()
        if running.is_killed:
            return Errored(WorkHorseKilled())
        if task.cancelled():
            may = self._worker.retry_jobs if running.is_arqs else running.is_given_back
            return GivenBack() if may else Errored(asyncio.CancelledError())
        error = task.exception()
        if error is None:
            return Succeeded(task.result())
        if running.is_arqs and self._worker.retry_jobs and isinstance(error, Retry | RetryJob):
            return AskedAgain(error.defer_seconds if isinstance(error, Retry) else None)
        return Errored(error)

    def _free_slot(self, running: Running) -> None:
        if running.has_slot:
            running.has_slot = False
            self.active_count -= 1
            self.active_by_queue[running.queue_name] -= 1

    def _leave(self, running: Running) -> None:
        self._free_slot(running)
        self.running.pop(running.id, None)

    def settled(self, batch: Sequence[Settlement], late: set[str]) -> None:
        """Redis knows how these ended; `late` are the executions of which it does not want to know."""
        for each in batch:
            running = each.running
            running.is_settled = True
            if isinstance(each.ending, AskedAgain):
                self._worker.upkeep.expect_delayed()
            if running.has_slot and running.id not in late:
                self._call_after(running)
            else:
                self._leave(running)
        self._worker.wake()

    def _call_after(self, running: Running) -> None:
        """As arq: in the job's slot and context, beside the others; it may wait for another job."""
        hook = self._hook(self._worker.after_job_end, running.ctx or {})
        running.after = asyncio.create_task(hook, context=running.context)
        running.after.add_done_callback(lambda task: self._after_ended(running, task))

    def _after_ended(self, running: Running, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            task.exception()  # the worker ends with it
        self._leave(running)
        self._worker.wake()

    def stop(self, is_meant: Callable[[Running], bool], *, is_abort: bool = False) -> int:
        """Stop the running jobs that are meant; how many. They end as stopped; with arq's abort, if they let it.

        If there is none, it may be one whose claim is not answered yet.
        """
        meant = [each for each in self.unended() if is_meant(each)]
        if not meant and self._worker.is_claiming:
            self.early_stops.append((is_meant, is_abort))
        for running in meant:
            _stop(running, is_abort=is_abort)
        return len(meant)

    def abort(self, execution_id: str) -> None:
        """The mark of arq's abort was found at a running job, whose command may have been lost."""
        if self._worker.allow_abort_jobs:
            is_meant = lambda each: each.id == execution_id and each.is_arqs and not each.is_aborted  # noqa: E731
            self.stop(is_meant, is_abort=True)

    def kill_all(self) -> int:
        """Fail the running jobs, as if RQ's work horse had been killed; how many."""
        meant = self.unended()
        for running in meant:
            running.is_killed = True
            running.cancel()
        return len(meant)

    def give_back(self, running: Running) -> None:
        """Cancel a job, to run again elsewhere."""
        running.is_given_back = True
        running.cancel()

    def give_back_all(self) -> None:
        """Give every running job back at once: what is at its cleanup is cancelled again."""
        for running in self.unended():
            self.give_back(running)
        self.give_back_rest()

    def give_back_rest(self) -> None:
        """Give back the running jobs that were not told yet, and end the hooks of those that have ended."""
        for running in self.unended():
            if not running.is_given_back:
                self.give_back(running)
        for running in self.running.values():
            if running.after is not None:
                running.after.cancel()

    def lose(self, execution_id: str) -> None:
        """Somebody took a job away: its task is cancelled, unrecorded."""
        running = self.running.get(execution_id)
        if running is not None and running.task is not None and not running.task.done():
            logger.warning("job %s was taken away from worker %s", running.job_id, self._worker.name)
            running.is_lost = True
            running.cancel()

    def keep_seconds(self, running: Running) -> int | None:
        """Arq's `keep_result` for a job, -1 for ever; None where the job's own record decides."""
        worker = self._worker
        if not running.is_arqs:
            return None
        limits = None if running.call is None else running.call.limits
        forever, seconds = worker.keep_result_forever, worker.keep_result
        # arq: what ends before its start is kept by the worker's rule, but a cron job's record guards its id
        if limits is not None and (running.task is not None or isinstance(limits, CronFunction)):
            forever = forever if limits.keep_result_forever is None else limits.keep_result_forever
            seconds = seconds if limits.keep_result_s is None else limits.keep_result_s
        if forever:
            return -1
        return None if seconds is None else math.ceil(seconds)

    def leave_alone(self) -> None:
        """Whoever runs this loop is not to wait for jobs that swallow their cancellation; they run elsewhere."""
        for running in self.unended():
            logger.error("Worker %s: job %s does not end; it is left alone", self._worker.name, running.job_id)
            if running.task is not None:
                asyncio._unregister_task(running.task)  # noqa: SLF001 - documented, for writers of tasks

    def unended(self) -> list[Running]:
        """The jobs whose tasks have not ended."""
        return [each for each in self.running.values() if each.task is not None and not each.task.done()]


def _stop(running: Running, *, is_abort: bool) -> None:
    if is_abort:
        running.is_aborted = True
    else:
        running.is_stopped = True
    running.cancel()


def arq_context(running: Running, shared: dict[str, Any], redis: Any) -> dict[str, Any]:
    """Arq's ctx of one run: the worker's, copied, and what is known of the job."""
    created_at = datetime.fromisoformat(running.raw[b"created_at"].decode())
    return {
        "redis": redis,
        **shared,
        "job_id": from_rq_id(running.job_id),
        "job_try": running.job_try,
        "enqueue_time": displayed(created_at),
        "score": round(due_seconds(running.raw) * 1000),
    }
