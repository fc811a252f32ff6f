"""`AsyncWorker`: an RQ worker with one event loop for its life and many jobs at once."""

import asyncio
import math
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import uvloop
from redis import Redis
from redis import asyncio as aioredis
from redis.exceptions import RedisError
from rq.logutils import setup_loghandlers
from rq.utils import now
from rq.worker import DequeueStrategy

from app.jobs.budget import is_away
from app.jobs.calls import MOST_BODY_BYTES, CallReader, Functions, FunctionTable
from app.jobs.claim import Claimer
from app.jobs.commands import listen
from app.jobs.executor import Executor, Hook
from app.jobs.heartbeat import HeartbeatThread
from app.jobs.membership import RegisteredWorker
from app.jobs.running import Running
from app.jobs.serializers import may_unpickle
from app.jobs.settings import RedisSettings, async_pool, close_sentinels, settings_of, sync_client
from app.jobs.settle import Settler
from app.jobs.signals import ShutdownSignals
from app.jobs.threads import Threads
from app.jobs.upkeep import Upkeep
from app.jobs.waiting import cancel_all, wait_at_most

_LONGEST_PAUSE_SECONDS = 2.0
_ANSWER_SECONDS = 10.0
_LONGEST_BLOCK_SECONDS = 30.0
_SETTLE_SECONDS = 10.0
"""How long a shutdown waits for Redis to take the last endings; what it misses runs again after a lease."""
_FAREWELL_SECONDS = 2.0
_LAST_CLAIM_SECONDS = 1.0
_RQS_CODE_SECONDS = 1.0
_SUBSCRIBE_SECONDS = 1.0

Tick = Callable[[], Awaitable[float | None]]


class AsyncWorker(RegisteredWorker):
    """RQ's worker for asyncio; `run` works inside a loop of yours, `work` (RQ's entry) in its own.

    Coroutine functions run as tasks, others in threads, each under its job's timeout. `functions` is an
    allow-list; without it, whatever a job names is imported, as with RQ. With a serializer other than pickle,
    callbacks, webhooks, instances and bodies over `max_body_bytes` are refused: nothing that is read from Redis is
    executed. The rest of the parameters are RQ's, and for jobs enqueued by arq's API arq's: `ctx`, `max_tries`,
    `job_timeout`, `keep_result` (None: as the job says), `keep_result_forever`, `retry_jobs`, the hooks.
    """

    def __init__(  # noqa: PLR0913 - RQ's parameters, arq's and ours, by keyword
        self,
        queues: Any,
        name: str | None = None,
        *,
        connection: Redis | None = None,
        redis_settings: RedisSettings | None = None,
        functions: Functions | None = None,
        ctx: dict[str, Any] | None = None,
        max_jobs: int = 10,
        max_tries: int = 5,
        job_timeout: float = 300.0,
        keep_result: float | None = None,
        keep_result_forever: bool = False,
        retry_jobs: bool = True,
        allow_abort_jobs: bool = True,
        on_job_start: Hook | None = None,
        on_job_end: Hook | None = None,
        after_job_end: Hook | None = None,
        on_tick: Tick | None = None,
        log_arqs_jobs: bool = False,
        log_results: bool = True,
        poll_seconds: float = 1.0,
        burst_waits_for_deferred: bool = False,
        max_body_bytes: int = MOST_BODY_BYTES,
        lease_seconds: float = 60.0,
        shutdown_grace_seconds: float | None = 25.0,
        cleanup_seconds: float | None = 10.0,
        prepare_for_work: bool = True,
        **kwargs: Any,
    ) -> None:
        self.redis_settings = redis_settings or settings_of(connection)
        own = (
            connection
            if connection is not None
            else sync_client(self.redis_settings, socket_timeout=_ANSWER_SECONDS)
        )
        # RQ would talk to Redis here, which may be away: `_register` does that part
        super().__init__(queues, name, connection=own, prepare_for_work=False, **kwargs)
        if connection is None:  # RQ has raised it to seven minutes, for blocking pops that we do elsewhere
            own.connection_pool.connection_kwargs["socket_timeout"] = _ANSWER_SECONDS
        if prepare_for_work:
            self.set_place()
        self.max_jobs, self.max_tries, self.job_timeout = max_jobs, max_tries, job_timeout
        self.keep_result, self.keep_result_forever = keep_result, keep_result_forever
        self.retry_jobs, self.allow_abort_jobs = retry_jobs, allow_abort_jobs
        self.on_job_start, self.on_job_end, self.after_job_end = on_job_start, on_job_end, after_job_end
        self.on_tick, self.poll_seconds = on_tick, poll_seconds
        self.log_arqs_jobs, self.log_results = log_arqs_jobs, log_results
        self.burst_waits_for_deferred = burst_waits_for_deferred
        self.lease_seconds = lease_seconds
        self.shutdown_grace_seconds, self.cleanup_seconds = shutdown_grace_seconds, cleanup_seconds
        self.ctx = {} if ctx is None else ctx
        self.jobs_complete = self.jobs_failed = self.jobs_retried = 0
        self.dequeue_strategy = DequeueStrategy.DEFAULT
        self.is_cold = False
        self.on_grace_over: Callable[[], None] | None = None
        self.trusts_redis = may_unpickle(self.serializer)
        self.reader = CallReader(FunctionTable(functions), None if self.trusts_redis else max_body_bytes)
        self.executor = Executor(self)
        self.arq_redis: aioredis.Redis | None = None  # what arq's functions get; None: this worker's own
        self._clock = time.time() - time.monotonic()
        self._claimer: Claimer | None = None
        self._idle = asyncio.Event()
        self.stop_event = anyio.Event()
        self._broken_by: Exception | None = None

    async def run(
        self,
        *,
        burst: bool = False,
        stop: anyio.Event | None = None,
        job_limit: int | None = None,
        max_idle_seconds: float | None = None,
    ) -> int:
        """Work until `stop` is set (or, with `burst`, the queues are empty); how many jobs were started.

        Redis may be away at the start and at any time: jobs go on, and are settled once it is back. When
        `stop` is set nothing more is claimed, running jobs have `shutdown_grace_seconds`, and the rest is
        cancelled, has `cleanup_seconds` to end, and goes back to the front of its queue.

        Raises:
            whatever a hook of arq's raised: it ends the worker.
        """
        self._loop = asyncio.get_running_loop()
        self.stop_event = stop or anyio.Event()
        self.is_cold, self._broken_by = False, None
        before = self.executor.started_count
        stack = AsyncExitStack()
        try:
            await self._open(stack)
            if await self._register():
                self.beats = HeartbeatThread(self, sync_client(self.redis_settings, socket_timeout=_ANSWER_SECONDS))
                self.beats.start()
                stack.push_async_callback(self._take_leave, self.beats)
                await self._work_until_cancelled(burst, job_limit, max_idle_seconds)
        finally:
            with anyio.CancelScope(shield=True):  # also when the caller's task group is being cancelled
                await stack.aclose()
        if self._broken_by is not None:
            raise self._broken_by
        return self.executor.started_count - before

    async def _open(self, stack: AsyncExitStack) -> None:
        self.threads = Threads()
        stack.callback(self.threads.close)
        self.redis = self._client(stack, _ANSWER_SECONDS)
        # a connection may die without a word: then an answer that is overdue is the only sign
        self.blocking_redis = self._client(stack, self.block_seconds + max(1.0, self.lease_seconds / 6))
        self.settler = Settler(self)

    def _client(self, stack: AsyncExitStack, socket_timeout: float | None) -> aioredis.Redis:
        pool = async_pool(self.redis_settings, socket_timeout=socket_timeout, sends_again=False)
        stack.push_async_callback(close_sentinels, pool)
        client = aioredis.Redis.from_pool(pool)
        stack.push_async_callback(client.aclose)
        return client

    def work(  # noqa: PLR0917 - RQ's signature
        self,
        burst: bool = False,  # noqa: FBT001, FBT002 - RQ's signature
        logging_level: str | None = None,
        date_format: str = "%H:%M:%S",
        log_format: str = "%(asctime)s %(message)s",
        max_jobs: int | None = None,
        max_idle_time: int | None = None,
        with_scheduler: bool = False,  # noqa: FBT001, FBT002 - RQ's signature; due jobs always move
        dequeue_strategy: DequeueStrategy = DequeueStrategy.DEFAULT,
    ) -> bool:
        """RQ's entry: set up logging and signals, run in a loop of our own; whether any job was started."""
        del with_scheduler
        for name in ("rq.worker", "rq.job"):
            setup_loghandlers(logging_level, date_format, log_format, name=name)
        if dequeue_strategy not in set(DequeueStrategy):
            raise ValueError(f"Dequeue strategy {dequeue_strategy} is none of {[str(s) for s in DequeueStrategy]}")
        self.dequeue_strategy = DequeueStrategy(dequeue_strategy)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return bool(runner.run(self._run_with_signals(burst, max_jobs, max_idle_time)))

    async def _run_with_signals(self, burst: bool, job_limit: int | None, max_idle: int | None) -> int:  # noqa: FBT001
        self.stop_event = anyio.Event()
        loop = asyncio.get_running_loop()
        on_signal = ShutdownSignals(
            is_stopping=self.stop_event.is_set, warm=self.shut_down_warm, cold=self.shut_down_cold
        )
        self.log.info("Worker %s: started with PID %d, %d jobs at once", self.name, os.getpid(), self.max_jobs)
        self.log.info("*** Listening on %s...", ", ".join(self.queue_names()))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            return await self.run(burst=burst, stop=self.stop_event, job_limit=job_limit, max_idle_seconds=max_idle)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _work_until_cancelled(
        self,
        burst: bool,  # noqa: FBT001 - private
        job_limit: int | None,
        max_idle_seconds: float | None,
    ) -> None:
        """A cancellation is a cold shutdown: Redis is told of what runs, instead of missing it after a lease."""
        working = asyncio.create_task(self._work_until_stopped(burst, job_limit, max_idle_seconds))
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            self.shut_down_cold()
            with anyio.CancelScope(shield=True):  # a second one from outside of anyio ends it all the same
                await asyncio.gather(working, return_exceptions=True)
            raise

    async def _work_until_stopped(
        self,
        burst: bool,  # noqa: FBT001 - private
        job_limit: int | None,
        max_idle_seconds: float | None,
    ) -> None:
        """Services and claiming in one group: a service that breaks ends the worker, loudly."""
        self._claimer = Claimer(self, burst=burst, job_limit=job_limit, max_idle_seconds=max_idle_seconds)
        self.upkeep = upkeep = Upkeep(self)
        async with asyncio.TaskGroup() as group:
            if burst:
                await upkeep.tick()
            listens = asyncio.Event()
            services = [
                group.create_task(each)
                for each in (listen(self, listens), upkeep.run(), self.settler.run(), self._wake_at_stop())
            ]
            try:
                # a stop command for the first job must be heard; a worker that may not subscribe works all the same
                await wait_at_most(listens, _SUBSCRIBE_SECONDS)
                await self._claim(group.create_task(self._claimer.run()))
                await self._claimer.disown_last(_LAST_CLAIM_SECONDS)
                await self._wind_down()
            finally:
                self.executor.give_back_all()
                await cancel_all(services)

    async def _claim(self, claiming: "asyncio.Task[None]") -> None:
        """Until the claimer ends or the worker is told to stop; a claim under way then has a second to end."""
        stopped = asyncio.ensure_future(self.stop_event.wait())
        try:
            await asyncio.wait({claiming, stopped}, return_when=asyncio.FIRST_COMPLETED)
            self.wake()
            await asyncio.wait({claiming}, timeout=_LAST_CLAIM_SECONDS)
        finally:
            await cancel_all((claiming, stopped))

    async def _wind_down(self) -> None:
        """Let running jobs finish within the grace, cancel the rest, let that clean up, and settle them all."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_RQS_CODE_SECONDS):
                await self.threads.run(self.note_shutdown)
        executor = self.executor
        if not self.stop_event.is_set():  # a burst or a limit is over, which is no reason to cut anything off
            await self._wait_while(lambda: executor.active_count > 0 and not self.stop_event.is_set(), None)
        await self._wait_while(lambda: executor.active_count > 0, self.shutdown_grace_seconds)
        if self.on_grace_over is not None:
            self.on_grace_over()
        executor.give_back_rest()
        await self._wait_while(lambda: executor.active_count > 0, self.cleanup_seconds)
        await self._wait_while(lambda: executor.unsettled_count > 0, min(_SETTLE_SECONDS, self.lease_seconds))
        executor.leave_alone()

    async def _take_leave(self, beats: HeartbeatThread) -> None:
        """End the beat and record the worker's death, if Redis answers soon; its record ends by itself anyway."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self.threads.run(beats.stop)
                await self.threads.finish(_RQS_CODE_SECONDS)
                await self.threads.run(self.bury)

    async def _wake_at_stop(self) -> None:
        await self.stop_event.wait()
        self.wake()

    async def _wait_while(self, condition: Callable[[], bool], seconds: float | None) -> None:
        until = math.inf if seconds is None else time.monotonic() + seconds
        while condition() and time.monotonic() < until:
            self._idle.clear()
            await wait_at_most(self._idle, None if seconds is None else until - time.monotonic())

    @property
    def running(self) -> dict[str, Running]:
        """Claimed jobs that are not settled yet, or whose last hook has not ended, by execution id."""
        return self.executor.running

    @property
    def is_claiming(self) -> bool:
        """Whether a claim's answer is on its way."""
        return self._claimer is not None and self._claimer.is_claiming

    def wake(self) -> None:
        """A slot is free, a job is settled, or a shutdown was asked for."""
        if self._claimer is not None:
            self._claimer.wake()
        self._idle.set()

    def request_shutdown(self) -> None:
        """A warm shutdown, as RQ's command and the first signal ask for."""
        self._stop_requested = True
        self._shutdown_requested_date = now()
        self.stop_event.set()

    def shut_down_warm(self) -> None:
        """Claim nothing more, and let the running jobs finish."""
        self.log.info("Worker %s: warm shutdown requested", self.name)
        self.request_shutdown()

    def shut_down_cold(self) -> None:
        """Give everything back at once."""
        self.log.warning("Worker %s: cold shutdown", self.name)
        self.is_cold = True
        self.request_shutdown()
        self.executor.give_back_all()

    def end_with(self, error: Exception) -> None:
        """Shut down, and have `run` raise an error."""
        self._broken_by = self._broken_by or error
        self.request_shutdown()

    def redis_time(self) -> float:
        """Unix seconds by Redis' clock, as far as the last answer tells."""
        return self._clock + time.monotonic()

    def set_redis_time(self, seconds: float) -> None:
        """Redis has just told its time."""
        self._clock = seconds - time.monotonic()

    @property
    def block_seconds(self) -> float:
        """How long a blocking command waits before it is sent anew; an answer is due by then."""
        return min(_LONGEST_BLOCK_SECONDS, self.lease_seconds / 2)

    @property
    def record_ttl(self) -> int:
        """Seconds that an execution lives without a heartbeat."""
        return int(self.lease_seconds) + 1

    def call_in_loop(self, function: Callable[..., object], *args: object) -> None:
        """From any thread: call something in the worker's loop, at its next turn."""
        self._loop.call_soon_threadsafe(function, *args)

    async def until_redis_answers(self, act: Callable[[], Awaitable[Any]], *, only_while_away: bool = False) -> Any:
        """Do `act`, again and again with a growing pause while Redis is away.

        Raises:
            RedisError: with `only_while_away` those that would come again.
            whatever else `act` raises.
        """
        pause = 0.05
        while True:
            try:
                return await act()
            except (RedisError, OSError) as exc:
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # the error came of closing down, and took its place
                    raise asyncio.CancelledError from exc
                if only_while_away and not is_away(exc):
                    raise
                self.log.warning("Worker %s: Redis: %s: %s", self.name, type(exc).__name__, exc)
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 - jitter
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _register(self) -> bool:
        """Make this worker known; False if it was told to stop before Redis answered."""
        registration = asyncio.ensure_future(self.until_redis_answers(lambda: self.threads.run(self.introduce)))
        stopped = asyncio.ensure_future(self.stop_event.wait())
        try:
            await asyncio.wait({registration, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if registration.done():
                registration.result()
                return True
            return False
        finally:
            await cancel_all((registration, stopped))
