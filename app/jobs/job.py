"""arq's `Job` over RQ's job hash and results stream."""

import asyncio
import base64
import time
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry
from rq.results import Result
from rq.serializers import Serializer, resolve_serializer
from rq.utils import as_text, str_to_date

from app.jobs.ids import from_rq_id, to_rq_id
from app.jobs.trampoline import TRAMPOLINE
from app.jobs.values import (
    DeserializationError,
    JobDef,
    JobExecutionFailed,
    JobResult,
    JobStatus,
    JobView,
    ResultNotFound,
)

if TYPE_CHECKING:
    from app.jobs.client import ArqRedis

_WAIT_MS = 1000
"""XREAD blocks for so long at a time, so that a job that vanishes is noticed."""
ABORT_FIELD = "abort_requested"
_SHOWN: dict[str, JobStatus] = {
    RQStatus.QUEUED: JobStatus.queued,
    RQStatus.CREATED: JobStatus.queued,
    RQStatus.STARTED: JobStatus.in_progress,
    RQStatus.SCHEDULED: JobStatus.deferred,
    RQStatus.DEFERRED: JobStatus.deferred,
}


class Job:
    """A handle on a job; making one does no I/O."""

    def __init__(
        self,
        job_id: str,
        redis: "ArqRedis",
        _queue_name: str = "arq:queue",
        _deserializer: Serializer | str | None = None,
    ) -> None:
        self.job_id = job_id
        self._redis = redis
        self._queue_name = _queue_name
        self._serializer = resolve_serializer(_deserializer or redis.job_serializer)
        self._rq_id = to_rq_id(job_id)
        self._key = RQJob.key_for(self._rq_id)
        self._results_key = Result.get_key(self._rq_id)
        self._seen = "0-0"  # the newest stream entry that was no end: what comes after it is waited for

    def __repr__(self) -> str:
        return f"<arq job {self.job_id}>"

    async def status(self) -> JobStatus:
        """Where the job is; success and failure are both `complete`."""
        status = await _awaited(self._redis.hget(self._key, "status"))
        if status is None:
            has_result = await _awaited(self._redis.exists(self._results_key))
            return JobStatus.complete if has_result else JobStatus.not_found
        return _SHOWN.get(as_text(status), JobStatus.complete)

    async def info(self) -> JobDef | JobResult | None:
        """The result if there is one, else the definition, else None.

        Raises:
            DeserializationError: the arguments cannot be read with this serializer.
        """
        found = await self.result_info()
        if found is not None:
            return found
        raw = await _awaited(self._redis.hgetall(self._key))
        if not raw:
            return None
        score = await _awaited(
            self._redis.zscore(ScheduledJobRegistry.key_template.format(self._queue_name), self._rq_id)
        )
        return self._definition(raw, None if score is None else int(score * 1000))

    async def result_info(self) -> JobResult | None:
        """The newest result, or None; never raises the job's own exception.

        Raises:
            DeserializationError: the result cannot be read with this serializer.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xrevrange(self._results_key, count=1)
        pipeline.hgetall(self._key)
        entries, raw = await pipeline.execute()
        if not entries:
            return None
        payload = {as_text(name): as_text(value) for name, value in entries[0][1].items()}
        if int(payload["type"]) == Result.Type.RETRIED.value:
            self._seen = as_text(entries[0][0])
            return None
        definition = self._definition(raw, None) if raw else None
        try:
            result: Any = (
                self._serializer.loads(base64.b64decode(payload["return_value"]))
                if (payload.get("return_value"))
                else None
            )
        except Exception as exc:
            raise DeserializationError("unable to deserialize job result") from exc
        success = int(payload["type"]) == Result.Type.SUCCESSFUL.value
        if not success:
            result = _exception_of(payload)
        return JobResult(
            function=definition.function if definition else "",
            args=definition.args if definition else (),
            kwargs=definition.kwargs if definition else {},
            job_try=int(payload["job_try"]) if "job_try" in payload else None,
            enqueue_time=definition.enqueue_time if definition else None,
            score=None,
            job_id=self.job_id,
            success=success,
            result=result,
            start_time=_moment(payload.get("execution_started_at")),
            finish_time=_moment(payload.get("execution_ended_at")),
            queue_name=self._queue_name,
        )

    async def result(self, timeout: float | None = None, *, poll_delay: float = 0.5) -> Any:  # noqa: ASYNC109
        """The job's return value, waited for without polling; `poll_delay` is there for arq's sake.

        Raises:
            the job's failure: as `JobExecutionFailed` with the last line of its traceback.
            CancelledError: it was stopped or cancelled.
            ResultNotFound: there is neither job nor result.
            TimeoutError: after `timeout` seconds.
        """
        del poll_delay
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            found = await self.result_info()
            if found is not None:
                if found.success:
                    return found.result
                raise found.result
            status = await self.status()
            if status is JobStatus.not_found or status is JobStatus.complete:
                if await self.result_info() is not None:  # it ended between the two questions
                    continue
                await self._raise_without_result()
            await self._wait_for_entry(deadline)

    async def abort(self, *, timeout: float | None = None, poll_delay: float = 0.5) -> bool:  # noqa: ASYNC109
        """Ask for the job to be stopped, then wait: True if it ended as cancelled, False if it ended otherwise.

        A running job's task is cancelled by its worker; a waiting one is moved to the head of the queue and
        recorded as stopped by the worker that takes it.

        Raises:
            TimeoutError: nothing happened within `timeout` seconds.
            the job's failure: if it failed for another reason meanwhile.
        """
        raw = await _awaited(self._redis.hmget(self._key, ["status", "worker_name"]))
        status, worker = (as_text(value) if value else None for value in raw)
        if status is None:
            return False
        if status == RQStatus.STARTED and worker:
            channel = PUBSUB_CHANNEL_TEMPLATE % worker
            await self._redis.publish(channel, f'{{"command": "stop-job", "job_id": "{self._rq_id}"}}')
        else:
            await self._move_to_head()
        try:
            await self.result(timeout, poll_delay=poll_delay)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return True
        except ResultNotFound:
            return False
        return False

    async def _move_to_head(self) -> None:
        queue_key = Queue.redis_queue_namespace_prefix + self._queue_name
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hset(self._key, mapping={ABORT_FIELD: "1", "status": RQStatus.QUEUED})
        pipeline.zrem(ScheduledJobRegistry.key_template.format(self._queue_name), self._rq_id)
        pipeline.lrem(queue_key, 1, self._rq_id)
        pipeline.lpush(queue_key, self._rq_id)
        await pipeline.execute()

    async def _raise_without_result(self) -> None:
        status = await _awaited(self._redis.hget(self._key, "status"))
        if status is not None and as_text(status) in {RQStatus.STOPPED, RQStatus.CANCELED}:
            raise asyncio.CancelledError
        raise ResultNotFound(
            "Not waiting for job result because the job is not in queue. Is the worker function configured to "
            "keep result?"
        )

    async def _wait_for_entry(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        block = _WAIT_MS if left is None else max(1, min(_WAIT_MS, int(left * 1000)))
        await _awaited(self._redis.xread({self._results_key: self._seen}, count=1, block=block))

    def _definition(self, raw: dict[bytes, bytes], score: int | None) -> JobDef:
        job = RQJob(self._rq_id, connection=self._redis._unused, serializer=self._serializer)  # noqa: SLF001
        try:
            job.restore(raw)
            args = tuple(job.args)
            kwargs = job.kwargs
        except Exception as exc:
            raise DeserializationError("unable to deserialize job") from exc
        function = job.func_name or ""
        if function == TRAMPOLINE:
            function, args = args[0], args[1:]
        tries = int(raw.get(b"job_try") or 0)
        return JobDef(
            function=function,
            args=args,
            kwargs=kwargs,
            job_try=tries + 1 if tries or raw.get(b"status") == b"started" else None,
            enqueue_time=job.enqueued_at,
            score=score,
            job_id=from_rq_id(self._rq_id),
        )


async def view_job(redis: "ArqRedis", job_id: str) -> JobView | None:
    """What RQ stores of a job, None if it knows none."""
    rq_id = to_rq_id(job_id)
    pipeline = redis.pipeline(transaction=False)
    pipeline.hgetall(RQJob.key_for(rq_id))
    pipeline.xrevrange(Result.get_key(rq_id), count=1)
    raw, entries = await pipeline.execute()
    if not raw:
        return None
    stored = {as_text(name): value for name, value in raw.items()}
    payload = {as_text(name): as_text(value) for name, value in entries[0][1].items()} if entries else {}
    error = str(_exception_of(payload)) if payload.get("exc_string") else None

    def moment(name: str) -> datetime | None:
        return str_to_date(stored[name]) if stored.get(name) else None

    return JobView(
        job_id=job_id,
        status=as_text(stored.get("status", b"")),
        enqueued_at=moment("enqueued_at"),
        started_at=moment("started_at"),
        ended_at=moment("ended_at"),
        worker_name=as_text(stored["worker_name"]) if stored.get("worker_name") else None,
        error=error,
    )


async def jobs_status(redis: Redis, job_ids: Sequence[str]) -> dict[str, str | None]:
    """RQ's status word for each job in one round trip; None where RQ knows none."""
    pipeline = redis.pipeline(transaction=False)
    for job_id in job_ids:
        pipeline.hget(RQJob.key_for(to_rq_id(job_id)), "status")
    answers = await pipeline.execute() if job_ids else []
    return {
        job_id: None if status is None else as_text(status) for job_id, status in zip(job_ids, answers, strict=True)
    }


def _exception_of(payload: dict[str, str]) -> BaseException:
    """The failure that a stream entry records: what is left of it is the traceback's text."""
    if int(payload.get("type", 0)) == _STOPPED_TYPE:
        return asyncio.CancelledError()
    text = ""
    if payload.get("exc_string"):
        text = zlib.decompress(base64.b64decode(payload["exc_string"])).decode()
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return JobExecutionFailed(lines[-1] if lines else "the job failed without a traceback")


def _moment(text: str | None) -> datetime | None:
    return datetime.fromtimestamp(float(text), UTC) if text else None


async def _awaited(answer: Any) -> Any:
    """redis-py types its async answers as maybe not awaitable."""
    return await answer


_STOPPED_TYPE = Result.Type.STOPPED.value
