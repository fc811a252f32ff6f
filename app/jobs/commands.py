"""RQ's commands to a worker, over pub/sub (rq.command): stop-job, stop-execution, kill-horse, shutdown."""

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.job import Job as RQJob

from app.jobs.job import ABORT_FIELD
from app.jobs.running import Running

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")


async def listen(worker: "AsyncWorker", listens: asyncio.Event) -> None:
    """Obey commands until cancelled; subscribes again whenever Redis is back. `listens` is set once it has."""
    while True:
        await worker.until_redis_answers(lambda: _listen_once(worker, listens))


async def _listen_once(worker: "AsyncWorker", listens: asyncio.Event) -> None:
    subscription: PubSub = worker.blocking_redis.pubsub()
    try:
        await subscription.subscribe(worker.pubsub_channel_name)
        is_asked = False
        while True:
            message = await subscription.get_message(timeout=worker.block_seconds)
            if message is None and is_asked:
                raise RedisConnectionError("the subscription's connection is dead: a ping had no answer")
            is_asked = message is None
            if message is None:
                await subscription.ping()
            elif message["type"] == "message":
                _obey(worker, message["data"])
            else:
                listens.set()
                await _stop_aborted(worker)
    finally:
        await subscription.aclose()


async def _stop_aborted(worker: "AsyncWorker") -> None:
    """Nobody listened until now: who was to be aborted meanwhile has its mark in Redis."""
    running = list(worker.running.values())
    if not running:
        return
    pipeline = worker.redis.pipeline(transaction=False)
    for each in running:
        pipeline.hget(RQJob.redis_job_namespace_prefix + each.job_id, ABORT_FIELD)
    for each, mark in zip(running, await pipeline.execute(raise_on_error=False), strict=True):
        if isinstance(mark, bytes):
            worker.executor.abort(each.id)


def _obey(worker: "AsyncWorker", raw: bytes) -> None:
    try:
        command: dict[str, Any] = json.loads(raw)
        name = command["command"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str):
        logger.warning("Worker %s: a command that is none was ignored", worker.name)
        return
    if name == "shutdown":
        worker.request_shutdown()
    elif name == "kill-horse":
        worker.executor.kill_all()
    elif name in {"stop-job", "stop-execution"}:
        is_abort = bool(command.get("abort"))
        stopped = worker.executor.stop(
            lambda running: _is_meant(running, name, command, worker.allow_abort_jobs), is_abort=is_abort
        )
        if not stopped and not is_abort:
            logger.warning("Worker %s: %s: no such job runs here", worker.name, name)


def _is_meant(running: Running, name: str, command: dict[str, Any], allows_abort: bool) -> bool:  # noqa: FBT001
    if name == "stop-execution":
        return running.id == command.get("execution_id")
    is_allowed = running.is_arqs and allows_abort if command.get("abort") else True
    return is_allowed and running.job_id == command.get("job_id")
