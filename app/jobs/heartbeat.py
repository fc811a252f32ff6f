"""Heartbeats from a thread of their own: a busy event loop must not lose its jobs to RQ's clean-ups."""

import logging
import threading
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")


class HeartbeatThread(threading.Thread):
    """Refreshes the worker's and all its executions' records three times a lease, on its own connection."""

    def __init__(self, worker: "AsyncWorker", connection: Redis) -> None:
        super().__init__(name=f"heartbeat of {worker.name}", daemon=True)
        self._worker = worker
        self._connection = connection
        self._ended = threading.Event()

    def stop(self) -> None:
        """End the thread and close its connection."""
        self._ended.set()
        self.join()
        self._connection.close()

    def run(self) -> None:
        """Beat until stopped; a Redis that is away is for the next beat."""
        while not self._ended.wait(self._worker.lease_seconds / 3):
            try:
                self._beat()
            except (RedisError, OSError) as exc:
                logger.warning("Worker %s: no heartbeat: %s", self._worker.name, exc)
            except Exception:  # the thread's boundary: without beats the worker would lose all its jobs
                logger.exception("Worker %s: a heartbeat failed", self._worker.name)

    def _beat(self) -> None:
        worker = self._worker
        executions = list(worker.executions.values())
        ttl = worker.lease_seconds
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.hget(worker.key, "birth")
            worker.heartbeat(pipeline=pipeline)
            first = len(pipeline)
            for execution in executions:
                registry = execution.job.started_job_registry
                pipeline.zscore(registry.key, execution.composite_key)
                pipeline.exists(execution.job.key)
                execution.heartbeat(registry, int(ttl) + 1, pipeline=pipeline)
            answers = pipeline.execute()
        if answers[0] is None:
            worker.report_forgotten()
        each = (len(answers) - first) // len(executions) if executions else 0
        for number, execution in enumerate(executions):
            score, has_job = answers[first + number * each : first + number * each + 2]
            # no entry and no job: Redis lost its memory, and nobody else runs it
            if score is None and has_job:
                worker.report_lost(execution.id)
