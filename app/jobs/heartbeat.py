"""Heartbeats from a thread of their own: a busy event loop must not lose its jobs to RQ's clean-ups.

A loop that has not turned for two thirds of a lease, on the other hand, must: nobody else would end what blocks it.
"""

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError
from rq.defaults import RQ_KEY_PREFIX
from rq.utils import now, utcformat

from app.jobs.job import ABORT_FIELD
from app.jobs.lua_upkeep import BEAT

if TYPE_CHECKING:
    from app.jobs.running import Running
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

_MOST_AT_ONCE = 256
_AGAIN_SECONDS = 1.0
_MOST_MISSED_TURNS = 2  # a third of a lease each


class HeartbeatThread(threading.Thread):
    """Refreshes the worker's and all its executions' records three times a lease, on its own connection."""

    def __init__(self, worker: "AsyncWorker", connection: Redis) -> None:
        super().__init__(name=f"heartbeat of {worker.name}", daemon=True)
        self._worker = worker
        self._connection = connection
        self._script = connection.register_script(BEAT)
        self._ended = threading.Event()
        self._turns_asked_for = 0  # of the loop, at each beat, and not made yet
        self.heard_since = 0.0
        """Since when Redis has heard us without a break (monotonic); infinity while it does not."""

    def stop(self) -> None:
        """End the thread and close its connection."""
        self._ended.set()
        self.join()
        self._connection.close()

    def run(self) -> None:
        """Beat until stopped; soon again while Redis is away: whoever looks for lost jobs first will find ours."""
        pause = usual_pause = self._worker.lease_seconds / 3
        while not self._ended.wait(pause):
            is_usual, pause = pause == usual_pause, usual_pause
            try:
                if not is_usual or self._loop_turns():
                    self._beat()
                    self.heard_since = min(self.heard_since, time.monotonic())
                else:
                    logger.error("Worker %s: the event loop stands still; no heartbeat", self._worker.name)
            except (RedisError, OSError) as exc:
                self.heard_since = math.inf
                pause = min(_AGAIN_SECONDS, usual_pause)
                logger.warning("Worker %s: no heartbeat: %s", self._worker.name, exc)
            except Exception:  # the thread's boundary: without beats the worker would lose all its jobs
                logger.exception("Worker %s: a heartbeat failed", self._worker.name)

    def _loop_turns(self) -> bool:
        missed = self._turns_asked_for
        self._turns_asked_for += 1
        self._worker.call_in_loop(self._note_turn)
        return missed < _MOST_MISSED_TURNS

    def _note_turn(self) -> None:
        self._turns_asked_for = 0

    def _beat(self) -> None:
        everything = [each for each in list(self._worker.running.values()) if not each.is_settled]
        if not self._beat_for(everything[:_MOST_AT_ONCE]):
            self._worker.introduce_again()
        for start in range(_MOST_AT_ONCE, len(everything), _MOST_AT_ONCE):
            self._beat_for(everything[start : start + _MOST_AT_ONCE])

    def _beat_for(self, executions: "list[Running]") -> bool:
        """One round trip; whether Redis knows the worker."""
        worker = self._worker
        worker.last_heartbeat = now()
        arguments: list[Any] = [
            RQ_KEY_PREFIX,
            worker.record_ttl,
            worker.worker_ttl + 60,
            worker.name,
            utcformat(worker.last_heartbeat),
            ABORT_FIELD,
        ]
        for running in executions:
            arguments += (running.queue_name, running.job_id, running.id, running.started)
        known, lost, aborted = self._script([worker.key, worker.executions_key], arguments)
        for execution_id in lost:
            worker.call_in_loop(worker.executor.lose, execution_id.decode())
        for execution_id in aborted:
            worker.call_in_loop(worker.executor.abort, execution_id.decode())
        return bool(known)
