"""`AsyncWorker`: an RQ worker with one event loop for its life and many jobs at once."""

import asyncio
import logging
import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import uvloop
from redis import Redis
from redis import asyncio as aioredis
from redis.exceptions import RedisError
from rq import worker_registration
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.timeouts import TimerDeathPenalty
from rq.worker import DequeueStrategy, Worker, WorkerStatus

from app.jobs.calls import FunctionTable, JobFunction, call
from app.jobs.claim import Claimer
from app.jobs.commands import listen
from app.jobs.heartbeat import HeartbeatThread
from app.jobs.running import Running, Stopped
from app.jobs.settings import RedisSettings, async_pool, settings_of, sync_client
from app.jobs.settle import Settler
from app.jobs.upkeep import Upkeep

_DEFAULT_TIMEOUT_SECONDS = 300.0
_LONGEST_PAUSE_SECONDS = 2.0
_ANSWER_SECONDS = 10.0
_SETTLE_SECONDS = 10.0
"""How long a shutdown waits for Redis to take the last endings; what it misses runs again after a lease."""


class AsyncWorker(Worker):
    """RQ's worker for asyncio; `run` works inside a loop of yours, `work` (RQ's entry) in its own.

    Coroutine functions run as tasks, others in threads, each under its job's timeout. `functions` is an
    allow-list; without it, whatever a job names is imported, as with RQ. `ctx` is what arq's functions get.
    """

    death_penalty_class = TimerDeathPenalty  # RQ's code runs in threads here, where signals do not work

    def __init__(  # noqa: PLR0913 - RQ's parameters and ours, by keyword
        self,
        queues: Any,
        name: str | None = None,
        *,
        connection: Redis | None = None,
        redis_settings: RedisSettings | None = None,
        functions: list[JobFunction] | None = None,
        ctx: dict[str, Any] | None = None,
        max_jobs: int = 10,
        max_tries: int = 5,
        lease_seconds: float = 60.0,
        shutdown_grace_seconds: float = 25.0,
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
            self.hostname, self.pid = socket.gethostname(), os.getpid()
        self.max_jobs = max_jobs
        self.max_tries = max_tries
        self.lease_seconds = lease_seconds
        self.shutdown_grace_seconds = shutdown_grace_seconds
        self.ctx = ctx or {}
        self.table = FunctionTable.of(functions)
        self.running: dict[str, Running] = {}
        self.started_count = 0

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
        given back to the front of its queue.
        """
        self._loop = asyncio.get_running_loop()
        self.stop_event = stop or anyio.Event()
        self.slot_freed = asyncio.Event()
        stack = AsyncExitStack()
        try:
            await self._open(stack)
            if await self._register():
                beats = HeartbeatThread(self, sync_client(self.redis_settings, socket_timeout=_ANSWER_SECONDS))
                beats.start()
                stack.push_async_callback(asyncio.to_thread, self._bury)
                stack.push_async_callback(asyncio.to_thread, beats.stop)
                await self._work_until_stopped(burst, job_limit, max_idle_seconds)
        finally:
            with anyio.CancelScope(shield=True):  # also when the caller's task group is being cancelled
                await stack.aclose()
        return self.started_count

    async def _open(self, stack: AsyncExitStack) -> None:
        self.redis = aioredis.Redis.from_pool(async_pool(self.redis_settings, socket_timeout=_ANSWER_SECONDS))
        stack.push_async_callback(self.redis.aclose)
        # blocking pops and subscriptions wait for longer than an answer may take
        self.blocking_redis = aioredis.Redis.from_pool(async_pool(self.redis_settings, socket_timeout=None))
        stack.push_async_callback(self.blocking_redis.aclose)
        self._settler = Settler(self)

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
        del with_scheduler, dequeue_strategy
        if logging_level is not None and not logging.getLogger("rq.worker").handlers:
            logging.basicConfig(level=logging_level, format=log_format, datefmt=date_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return bool(runner.run(self._run_with_signals(burst, max_jobs, max_idle_time)))

    async def _run_with_signals(self, burst: bool, job_limit: int | None, max_idle: int | None) -> int:  # noqa: FBT001
        stop = anyio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, stop)
        try:
            return await self.run(burst=burst, stop=stop, job_limit=job_limit, max_idle_seconds=max_idle)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _on_signal(self, stop: anyio.Event) -> None:
        """The first signal is a warm shutdown; a second one gives everything back at once."""
        if stop.is_set():
            self.cancel_all()
        stop.set()

    async def _work_until_stopped(
        self,
        burst: bool,  # noqa: FBT001 - private
        job_limit: int | None,
        max_idle_seconds: float | None,
    ) -> None:
        """Services and claiming in one group: a service that breaks ends the worker, loudly."""
        async with asyncio.TaskGroup() as group:
            services = [
                group.create_task(service) for service in (listen(self), Upkeep(self).run(), self._settler.run())
            ]
            try:
                claimer = Claimer(self, burst=burst, job_limit=job_limit, max_idle_seconds=max_idle_seconds)
                await claimer.claim_until_stopped()
                await self._wind_down()
            finally:
                self.cancel_all()
                for service in services:
                    service.cancel()

    async def _wind_down(self) -> None:
        """Let running jobs finish within the grace, give the rest back, and settle them all."""
        await self._wait_until_idle(self.shutdown_grace_seconds)
        self.cancel_all()
        await self._wait_until_idle(_SETTLE_SECONDS)

    async def _wait_until_idle(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while self.running:
                self.slot_freed.clear()
                await self.slot_freed.wait()

    def start(self, running: Running) -> None:
        """Run a claimed job as a task."""
        job = running.job
        self.running[running.execution.id] = running
        if running.is_stopped:  # aborted while it waited: recorded, not run
            self._settler.put(running, Stopped())
            return
        self.started_count += 1
        running.task = asyncio.create_task(
            call(
                job,
                self.table,
                ctx={**self.ctx, "redis": self.redis},
                job_try=running.job_try,
                timeout_seconds=float(job.timeout or _DEFAULT_TIMEOUT_SECONDS),
            ),
            name=f"job {job.id}",
        )
        running.task.add_done_callback(lambda _task: self._finished(running))

    def _finished(self, running: Running) -> None:
        ending = running.ending(max_tries=self.max_tries)
        if ending is None:
            self.forget(running)
        else:
            self._settler.put(running, ending)

    def forget(self, running: Running) -> None:
        """A job is settled (or lost): its slot is free."""
        self.executions.pop(running.execution.id, None)
        self.running.pop(running.execution.id, None)
        self.slot_freed.set()

    def stop_running(self, is_meant: Callable[[Running], bool]) -> int:
        """Stop the running jobs that are meant; how many. They end as stopped."""
        meant = [running for running in self.running.values() if is_meant(running)]
        for running in meant:
            running.is_stopped = True
            running.cancel()
        return len(meant)

    def cancel_all(self) -> None:
        """Give every running job back."""
        for running in self.running.values():
            running.cancel()

    def request_shutdown(self) -> None:
        """A warm shutdown, as RQ's command asks for."""
        self.stop_event.set()

    def report_lost(self, execution_id: str) -> None:
        """From the heartbeat's thread: somebody took a running job away; its task is cancelled, unrecorded."""
        self._loop.call_soon_threadsafe(self._lose, execution_id)

    def report_forgotten(self) -> None:
        """From the heartbeat's thread: Redis no longer knows this worker, so it is introduced again.

        Not by `register_birth`, which refuses a name that is there: the beat has just made half a record.
        """
        self.log.warning("Worker %s: Redis has forgotten it; registering again", self.name)
        with self.connection.pipeline() as pipeline:
            pipeline.hset(self.key, mapping={**self.serialize(), "state": self.get_state()})
            pipeline.expire(self.key, self.worker_ttl + 60)
            worker_registration.register(self, pipeline)
            pipeline.execute()

    def _lose(self, execution_id: str) -> None:
        running = self.running.get(execution_id)
        if running is not None and running.task is not None and not running.task.done():
            self.log.warning("job %s was taken away from worker %s", running.job.id, self.name)
            running.is_lost = True
            running.cancel()

    def queue_of(self, job: RQJob) -> Queue:
        """The queue that a job came from, on the sync connection."""
        return Queue(job.origin, connection=self.connection, serializer=self.serializer)

    async def until_redis_answers(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Do `act`, again and again with a growing pause while Redis is away."""
        pause = 0.05
        while True:
            try:
                return await act()
            except (RedisError, OSError) as exc:
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # the error came of closing down, and took its place
                    raise asyncio.CancelledError from exc
                self.log.warning("Worker %s: Redis: %s: %s", self.name, type(exc).__name__, exc)
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 - jitter
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _register(self) -> bool:
        """Make this worker known; False if it was told to stop before Redis answered."""

        def introduce() -> None:
            self._set_ip_address(self.connection)
            self.register_birth()
            self.set_state(WorkerStatus.IDLE)

        registration = asyncio.ensure_future(self.until_redis_answers(lambda: asyncio.to_thread(introduce)))
        stopped = asyncio.ensure_future(self.stop_event.wait())
        try:
            await asyncio.wait({registration, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if registration.done():
                registration.result()
                return True
            return False
        finally:
            for waiting in (registration, stopped):
                waiting.cancel()
            await asyncio.gather(registration, stopped, return_exceptions=True)

    def _bury(self) -> None:
        try:
            self.register_death()
        except (RedisError, OSError) as exc:
            self.log.warning("Worker %s: its death is not recorded: %s", self.name, exc)
        self.connection.close()
