"""How a worker is known to RQ: its birth, its record, its death, and RQ's own maintenance."""

import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq import worker_registration
from rq.group import Group
from rq.queue import Queue
from rq.rate_limit import RateLimitRegistry
from rq.registry import DeferredJobRegistry, FailedJobRegistry, FinishedJobRegistry, ReadyJobRegistry
from rq.timeouts import TimerDeathPenalty
from rq.utils import as_text, now, utcformat
from rq.worker import Worker, WorkerStatus

from app.jobs.running import Running

if TYPE_CHECKING:
    import asyncio

    from app.jobs.executor import Executor

_CLEANED = (FinishedJobRegistry, FailedJobRegistry, DeferredJobRegistry, ReadyJobRegistry)


class RegisteredWorker(Worker):
    """RQ's worker as far as it is a record in Redis: one without a work horse, whose jobs its `executor` holds."""

    death_penalty_class = TimerDeathPenalty  # RQ's code runs in threads here, where signals do not work
    executor: "Executor"
    _loop: "asyncio.AbstractEventLoop"

    def set_place(self) -> None:
        """Note on which machine and in which process the worker is."""
        self.hostname, self.pid = socket.gethostname(), os.getpid()

    def introduce(self) -> None:
        """Make the worker known; blocks, and may be called again when Redis was away."""
        self._set_ip_address(self.connection)
        if not self._is_born():
            self.register_birth()
        self.set_state(WorkerStatus.IDLE)

    def _is_born(self) -> bool:
        """Whether this worker is known: by an attempt that failed later, or whose answer was lost."""
        if self.birth_date is None:
            return False
        birth, death = self.connection.hmget(self.key, "birth", "death")
        return as_text(birth or "") == utcformat(self.birth_date) and death is None

    def introduce_again(self) -> None:
        """Redis has forgotten the worker; from the heartbeat's thread.

        Not by `register_birth`, which refuses a name that is there: the beat has just made half a record.
        """
        self.log.warning("Worker %s: Redis has forgotten it; registering again", self.name)
        with self.connection.pipeline() as pipeline:
            pipeline.hset(self.key, mapping={**self.serialize(), "state": self.get_state()})
            pipeline.expire(self.key, self.worker_ttl + 60)
            worker_registration.register(self, pipeline)
            pipeline.execute()

    def bury(self) -> None:
        """Record the worker's death, if Redis takes it; blocks."""
        try:
            self.register_death()
        except (RedisError, OSError) as exc:
            self.log.warning("Worker %s: its death is not recorded: %s", self.name, exc)
        self.connection.close()

    def note_shutdown(self) -> None:
        """Record that a shutdown was asked for, if Redis takes it; blocks."""
        if self._shutdown_requested_date is not None:
            with suppress(RedisError, OSError):
                self.set_shutdown_requested_date()

    def clean_registries(self) -> None:
        """RQ's, without started and intermediate jobs: those our own upkeep runs again instead of failing them."""
        for queue in self.queues:
            if not queue.acquire_maintenance_lock():
                continue
            self.log.debug("Worker %s: cleaning registries for queue: %s", self.name, queue.name)
            for registry in _CLEANED:
                registry(queue.name, connection=self.connection, serializer=self.serializer).cleanup()
            for rate_limit in RateLimitRegistry.all(self.connection):
                rate_limit.cleanup()
            worker_registration.clean_worker_registry(queue)
            queue.release_maintenance_lock()
        self.last_cleaned_at = now()  # type: ignore[assignment]  # RQ types it None

    def clean_group_registries(self) -> None:
        """RQ's, without telling."""
        if Group.acquire_maintenance_lock(self.connection, max(int(self.maintenance_interval) - 1, 1)):
            Group.clean_registries(connection=self.connection)

    @property
    def has_own_failure_rules(self) -> bool:
        """Whether RQ's exception handlers decide what becomes of a failure."""
        return bool(self._exc_handlers) or self.disable_default_exception_handler

    def queue_of(self, running: Running) -> Queue:
        """The queue that a job came from, on the sync connection."""
        return Queue(running.queue_name, connection=self.connection, serializer=self.serializer)

    @property
    def executions(self) -> dict[str, Any]:
        """Claimed jobs that are not settled yet, by execution id."""
        # a copy: RQ's code takes settled ones out before it has told Redis
        return dict(self.executor.running) if hasattr(self, "executor") else self._no_executions

    @executions.setter
    def executions(self, executions: dict[str, Any]) -> None:
        self._no_executions = executions  # RQ's initialiser sets it

    def kill_horse(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """Fail all running jobs; from any thread. There is no horse to be killed."""
        del sig
        self._loop.call_soon_threadsafe(self.executor.kill_all)

    def request_stop_execution(self, execution_id: str) -> None:
        """Stop one execution; from any thread."""
        self._loop.call_soon_threadsafe(self.executor.stop, lambda running: running.id == execution_id)
