"""arq's `Worker` (arq 0.28, `arq.worker`): a door of `AsyncWorker` with arq's names, defaults and endings."""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from functools import partial
from signal import Signals
from typing import Any

import anyio
from rq.serializers import Serializer

from app.jobs.arq_attributes import Attributes
from app.jobs.arq_names import WorkerSettingsType
from app.jobs.calls import MOST_BODY_BYTES
from app.jobs.client import DAY_MS, DEFAULT_QUEUE, ArqRedis, create_pool, log_redis_info
from app.jobs.cron import CronJob, enqueue_due
from app.jobs.executor import Hook
from app.jobs.functions import Duration, Function, func, seconds_of
from app.jobs.health import HealthRecord, check_health_with, health_key
from app.jobs.serializers import ArqSerializer, DictDeserializer, DictSerializer, choose_serializer
from app.jobs.settings import RedisSettings, settings_of
from app.jobs.signals import HeldSignals
from app.jobs.values import JobResult
from app.jobs.waiting import lasting_loop
from app.jobs.worker import AsyncWorker

logger = logging.getLogger("arq.worker")

_SHORTEST_POLL_SECONDS = 0.01
_REDIS_STRING_BYTES = 512 * 1024 * 1024
"""The limit of arguments in arq, which packs them in a Redis string."""


class FailedJobs(RuntimeError):
    """`run_check` found failures."""

    def __init__(self, count: int, job_results: list[JobResult]) -> None:
        self.count = count
        self.job_results = job_results
        super().__init__(count, job_results)

    def __str__(self) -> str:
        if self.count == 1 and self.job_results:
            return f"1 job failed {self.job_results[0].result!r}"
        return f"{self.count} jobs failed:\n" + "\n".join(repr(each.result) for each in self.job_results)

    def __repr__(self) -> str:
        return f"<{self}>"


class Worker(Attributes):
    """Runs the jobs of one queue; parameters, defaults and endings are arq's, times seconds or timedelta.

    `poll_delay` is how often due jobs are looked for: new ones wake the worker by themselves, so
    `queue_read_limit` means nothing here. `serializer` and `lease_seconds` are this package's own. arq's public
    attributes are there (`Attributes`), and `functions` may be added to.

    Raises:
        RuntimeError: no function at all, one that is no coroutine function, or a cron job that is none.
        ValueError: `queue_name` is None and there is no `redis_pool` to name one.
    """

    def __init__(  # noqa: PLR0913 - arq's parameters
        self,
        functions: Sequence[Function | Callable[..., Any] | str] = (),
        *,
        queue_name: str | None = DEFAULT_QUEUE,
        cron_jobs: Sequence[CronJob] | None = None,
        redis_settings: RedisSettings | None = None,
        redis_pool: ArqRedis | None = None,
        burst: bool = False,
        on_startup: Hook | None = None,
        on_shutdown: Hook | None = None,
        on_job_start: Hook | None = None,
        on_job_end: Hook | None = None,
        after_job_end: Hook | None = None,
        handle_signals: bool = True,
        job_completion_wait: float = 0,
        max_jobs: int = 10,
        job_timeout: Duration = 300,
        keep_result: Duration = 3600,
        keep_result_forever: bool = False,
        poll_delay: Duration = 0.5,
        queue_read_limit: int | None = None,
        max_tries: int = 5,
        health_check_interval: Duration = 3600,
        health_check_key: str | None = None,
        ctx: dict[Any, Any] | None = None,
        retry_jobs: bool = True,
        allow_abort_jobs: bool = False,
        max_burst_jobs: int = -1,
        job_serializer: DictSerializer | None = None,
        job_deserializer: DictDeserializer | None = None,
        expires_extra_ms: int = DAY_MS,
        timezone: tzinfo | None = None,
        log_results: bool = True,
        serializer: Serializer | str | None = None,
        lease_seconds: float = 60.0,
    ) -> None:
        if queue_name is None and redis_pool is None:
            raise ValueError("If queue_name is absent, redis_pool must be present.")
        self.queue_name = queue_name or (redis_pool.default_queue_name if redis_pool else DEFAULT_QUEUE)
        self.cron_jobs = list(cron_jobs or ())
        self.functions = _by_name(functions, self.cron_jobs)
        self.burst, self.max_burst_jobs = burst, max_burst_jobs
        self.on_startup, self.on_shutdown = on_startup, on_shutdown
        self.timezone = timezone or datetime.now().astimezone().tzinfo
        self.on_stop: Callable[[Signals], Any] | None = None
        self.redis_settings = None if redis_pool is not None else redis_settings or RedisSettings()
        self._pool = redis_pool
        self._handle_signals, self._job_completion_wait = handle_signals, job_completion_wait
        self.expires_extra_ms = expires_extra_ms
        self.queue_read_limit = queue_read_limit or max(max_jobs * 5, 100)
        self._serializer, self.job_serializer, self.job_deserializer = serializer, job_serializer, job_deserializer
        handler = self.handle_sig_wait_for_completion if job_completion_wait else self.handle_sig
        self._signals = HeldSignals(handler if handle_signals else None)
        self._is_stopped = self._is_working = False
        self._health = HealthRecord(
            health_check_key or health_key(self.queue_name),
            self.queue_name,
            seconds_of(health_check_interval) or 0.0,
        )
        chosen = _serializer_of(redis_pool, serializer, job_serializer, job_deserializer)
        self._engine = AsyncWorker(
            [self.queue_name],
            redis_settings=self.redis_settings or _settings_of(redis_pool),
            functions=self.functions,
            serializer=chosen,
            max_body_bytes=_REDIS_STRING_BYTES if isinstance(chosen, ArqSerializer) else MOST_BODY_BYTES,
            ctx={} if ctx is None else ctx,
            max_jobs=max_jobs,
            max_tries=max_tries,
            job_timeout=seconds_of(job_timeout) or 0.0,
            keep_result=seconds_of(keep_result),
            keep_result_forever=keep_result_forever,
            retry_jobs=retry_jobs,
            allow_abort_jobs=allow_abort_jobs,
            on_job_start=on_job_start,
            on_job_end=on_job_end,
            after_job_end=after_job_end,
            on_tick=self._tick,
            poll_seconds=max(seconds_of(poll_delay) or 0.0, _SHORTEST_POLL_SECONDS),
            burst_waits_for_deferred=True,
            log_arqs_jobs=True,
            log_results=log_results,
            cleanup_seconds=None,
            lease_seconds=lease_seconds,
        )

    def run(self) -> None:
        """Work until told to stop, then close; in the loop that is set, or one that stays set, as in arq."""
        runner = asyncio.Runner(loop_factory=lasting_loop)  # never closed: a pool of the caller's may live there
        with contextlib.suppress(asyncio.CancelledError):  # a signal: fine
            runner.run(self._run_and_close())

    async def _run_and_close(self) -> None:
        with self._signals.held():
            try:
                await self.async_run()
            finally:
                await self.close()

    async def async_run(self) -> None:
        """Work until told to stop, and leave the pool open.

        Raises:
            CancelledError: `handle_sig` ended it.
            whatever a hook raised.
        """
        self.main_task = asyncio.ensure_future(self.main())
        await self.main_task

    async def run_check(self, retry_jobs: bool | None = None, max_burst_jobs: int | None = None) -> int:  # noqa: FBT001
        """As `async_run`; how many jobs have succeeded.

        Raises:
            FailedJobs: some have failed.
        """
        if retry_jobs is not None:
            self.retry_jobs = retry_jobs
        if max_burst_jobs is not None:
            self.max_burst_jobs = max_burst_jobs
        await self.async_run()
        if self.jobs_failed:
            results = await self.pool.all_job_results()
            raise FailedJobs(self.jobs_failed, [each for each in results if not each.success])
        return self.jobs_complete

    async def main(self) -> None:
        """Connect, start up, and work.

        Raises:
            as `async_run`.
        """
        self._is_stopped = False
        with self._signals.held():
            await self._start_up()
            if not self._is_stopped:
                await self._work()
        if self._is_stopped:
            raise asyncio.CancelledError

    async def _start_up(self) -> None:
        if self._pool is None:
            self._pool = await create_pool(
                self.redis_settings,
                serializer=self._serializer,
                job_serializer=self.job_serializer,
                job_deserializer=self.job_deserializer,
                default_queue_name=self.queue_name,
                expires_extra_ms=self.expires_extra_ms,
            )
        self._engine.arq_redis = self.ctx["redis"] = self._pool
        logger.info("Starting worker for %d functions: %s", len(self.functions), ", ".join(self.functions))
        await log_redis_info(self._pool, logger.info)
        if self.on_startup is not None:
            await self.on_startup(self.ctx)

    async def _work(self) -> None:
        self._is_working = True
        try:
            await self._engine.run(burst=self.burst, stop=anyio.Event(), job_limit=self._job_limit())
        finally:
            self._is_working = False

    def _job_limit(self) -> int | None:
        if not self.burst or self.max_burst_jobs < 0:
            return None
        return max(0, self.max_burst_jobs - self._engine.executor.started_count)

    def handle_sig(self, signum: Signals) -> None:
        """Stop at once: running jobs are cancelled and run again elsewhere."""
        self._stop(Signals(signum), grace_seconds=0.0, what="ongoing to cancel")

    def handle_sig_wait_for_completion(self, signum: Signals) -> None:
        """Start nothing more, and stop once the running jobs have ended or `job_completion_wait` is over."""
        logger.info("Setting allow_pick_jobs to `False`")
        self._engine.on_grace_over = partial(self._tell_of_wait, Signals(signum).name)
        self._stop(Signals(signum), grace_seconds=self._job_completion_wait, what="to be completed")

    def _tell_of_wait(self, name: str) -> None:
        self._engine.on_grace_over = None
        logger.info("shutdown on %s, wait complete ◆ %s", name, self._counts("ongoing to cancel"))

    def _counts(self, what: str) -> str:
        engine = self._engine
        return (
            f"{engine.jobs_complete} jobs complete ◆ {engine.jobs_failed} failed ◆ {engine.jobs_retried} retries ◆ "
            f"{engine.executor.active_count} {what}"
        )

    def _stop(self, number: Signals, *, grace_seconds: float, what: str) -> None:
        logger.info("shutdown on %s ◆ %s", number.name, self._counts(what))
        self._end_work(grace_seconds)
        if self.on_stop is not None:
            self.on_stop(number)

    def _end_work(self, grace_seconds: float | None) -> None:
        """End what `main` is at; None: running jobs may take as long as they need."""
        self._is_stopped = True
        if self._is_working:
            if grace_seconds == 0 and self._engine.stop_event.is_set():
                self._engine.executor.give_back_all()  # told again: as arq, it waits for no cleanup
            self._engine.shutdown_grace_seconds = grace_seconds
            self._engine.request_shutdown()
        elif self.main_task is not None:
            self.main_task.cancel()

    async def close(self) -> None:
        """Stop, wait for it, shut down and close the pool.

        Running jobs are cancelled, and run again elsewhere; with `handle_signals` they are waited for, as in arq.
        """
        with self._signals.held():
            await self._close()

    async def _close(self) -> None:
        if not self._handle_signals:
            self.handle_sig(Signals.SIGUSR1)
        main_task = self.main_task
        if main_task is not None and not main_task.done() and main_task is not asyncio.current_task():
            if self._handle_signals:
                self._end_work(None)
            await asyncio.wait({main_task})
        if self._pool is None:
            return
        await self._health.end(self._pool)
        if self.on_shutdown is not None:
            await self.on_shutdown(self.ctx)
        await self._pool.aclose(close_connection_pool=True)
        self._pool = None

    async def _tick(self) -> float:
        pauses = [await self._health.keep(self.pool, self._engine)]
        due = await enqueue_due(self.cron_jobs, self.pool, self.queue_name, self.timezone)
        if due is not None:
            pauses.append(due)
        return min(pauses)

    @property
    def pool(self) -> ArqRedis:
        """The connection pool.

        Raises:
            RuntimeError: the worker does not run.
        """
        if self._pool is None:
            raise RuntimeError("the worker has no pool: it has not been started, or was closed")
        return self._pool

    def __repr__(self) -> str:
        return (
            f"<Worker j_complete={self.jobs_complete} j_failed={self.jobs_failed} j_retried={self.jobs_retried} "
            f"j_ongoing={self._engine.executor.active_count}>"
        )


def _by_name(
    functions: Sequence[Function | Callable[..., Any] | str], cron_jobs: Sequence[CronJob]
) -> dict[str, Function | CronJob]:
    if not all(isinstance(each, CronJob) for each in cron_jobs):
        raise RuntimeError("cron_jobs, must be instances of CronJob")
    named: dict[str, Function | CronJob] = {each.name: each for each in map(func, functions)}
    named |= {each.name: each for each in cron_jobs}
    if not named:
        raise RuntimeError("at least one function or cron_job must be registered")
    return named


def _settings_of(pool: ArqRedis | None) -> RedisSettings:
    known = None if pool is None else pool.settings
    return settings_of(pool) if known is None else known


def _serializer_of(
    pool: ArqRedis | None,
    serializer: Serializer | str | None,
    job_serializer: DictSerializer | None,
    job_deserializer: DictDeserializer | None,
) -> Serializer:
    """The one that is asked for, or the pool's."""
    if pool is not None and serializer is None and job_serializer is None and job_deserializer is None:
        return pool.serializer
    return choose_serializer(serializer, job_serializer, job_deserializer)


def get_kwargs(settings_cls: WorkerSettingsType) -> dict[str, Any]:
    """A worker's parameters among the attributes of a class (its own, not inherited ones) or a dict's items."""
    names = inspect.signature(Worker).parameters
    given = settings_cls if isinstance(settings_cls, Mapping) else vars(settings_cls)
    return {name: value for name, value in given.items() if name in names}


def create_worker(settings_cls: WorkerSettingsType, **kwargs: Any) -> Worker:
    """A worker with these settings; `kwargs` come first."""
    return Worker(**(get_kwargs(settings_cls) | kwargs))


def run_worker(settings_cls: WorkerSettingsType, **kwargs: Any) -> Worker:
    """Create a worker and run it to its end."""
    worker = create_worker(settings_cls, **kwargs)
    worker.run()
    return worker


def check_health(settings_cls: WorkerSettingsType) -> int:
    """0 if a worker with these settings has left a health record that has not run out, else 1."""
    return check_health_with(get_kwargs(settings_cls))
