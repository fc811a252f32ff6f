"""arq's `Job` over RQ's job hash and results stream (arq 0.28, `arq.jobs`)."""

import asyncio
import base64
import json
import time
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from redis import asyncio as aioredis
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.defaults import RQ_KEY_PREFIX
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.registry import ScheduledJobRegistry
from rq.results import Result
from rq.serializers import DefaultSerializer, Serializer
from rq.utils import as_text, utcparse

from app.jobs.budget import within_budget
from app.jobs.ids import to_rq_id
from app.jobs.lua_client import ABORT
from app.jobs.serializers import DictDeserializer, serializer_of, stored_exception, unpacked
from app.jobs.trampoline import TRAMPOLINE
from app.jobs.values import (
    DeserializationError,
    JobDef,
    JobExecutionFailed,
    JobResult,
    JobStatus,
    ResultNotFound,
    SerializationError,
    displayed,
)

_WAIT_MS = 1000
"""XREAD blocks for so long at a time, so that a job that vanishes is noticed."""
_MOST_TEXT_BYTES = 16 * 1024 * 1024
ABORT_FIELD = "abort_requested"
_SHOWN: dict[str, JobStatus] = {
    RQStatus.QUEUED: JobStatus.queued,
    RQStatus.CREATED: JobStatus.queued,
    RQStatus.STARTED: JobStatus.in_progress,
    RQStatus.SCHEDULED: JobStatus.deferred,
    RQStatus.DEFERRED: JobStatus.deferred,
    RQStatus.RATE_LIMITED: JobStatus.queued,
}
_STOPPED = Result.Type.STOPPED.value
_RETRIED = Result.Type.RETRIED.value
_SUCCESSFUL = Result.Type.SUCCESSFUL.value


class Job:
    """A handle on a job; making one does no I/O. `redis` may be a plain client of redis-py."""

    def __init__(
        self,
        job_id: str,
        redis: aioredis.Redis,
        _queue_name: str = "arq:queue",
        _deserializer: Serializer | DictDeserializer | str | None = None,
    ) -> None:
        self.job_id = job_id
        self._redis = redis
        self._queue_name = _queue_name
        self._deserializer = _deserializer
        self._rq_id = to_rq_id(job_id)
        self._key = RQJob.key_for(self._rq_id)
        self._results_key = Result.get_key(self._rq_id)
        self._seen = "0-0"  # the newest stream entry that was no end: what comes after it is waited for

    def __repr__(self) -> str:
        return f"<arq job {self.job_id}>"

    @property
    def _serializer(self) -> Serializer:
        if self._deserializer is not None:
            return serializer_of(self._deserializer)
        return getattr(self._redis, "serializer", DefaultSerializer)  # of a plain client: pickle, as arq

    async def status(self) -> JobStatus:
        """Where the job is; success and failure are both `complete`.

        Raises:
            QueueUnavailable: with a budget, Redis is away.
        """
        async with within_budget(self._redis):
            status, queue_name = await _awaited(self._redis.hmget(self._key, "status", "origin"))
            if status is None:
                has_result = await _awaited(self._redis.exists(self._results_key))
                return JobStatus.complete if has_result else JobStatus.not_found
            if as_text(status) == RQStatus.SCHEDULED:  # with no worker there a job that is due stays so
                registry = ScheduledJobRegistry.key_template.format(as_text(queue_name or self._queue_name))
                due = await self._redis.zscore(registry, self._rq_id)
                return JobStatus.queued if due is not None and due <= time.time() else JobStatus.deferred
        return _SHOWN.get(as_text(status), JobStatus.complete)

    async def info(self) -> JobDef | JobResult | None:
        """The result if there is one, else the definition, else None.

        Raises:
            DeserializationError: the arguments cannot be read with this serializer.
            QueueUnavailable: with a budget, Redis is away.
        """
        return await self.result_info() or await self.definition()

    async def definition(self) -> JobDef | None:
        """The job as it was enqueued, None if there is none.

        Raises:
            as `info`.
        """
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hgetall(self._key)
        pipeline.zscore(ScheduledJobRegistry.key_template.format(self._queue_name), self._rq_id)
        async with within_budget(self._redis):
            raw, due = await pipeline.execute()
        if not raw:
            return None
        found = self._definition(raw)
        status = as_text(raw.get(b"status", b""))
        if _SHOWN.get(status, JobStatus.complete) is JobStatus.complete:
            return found
        if due is None:
            due = due_seconds(raw)
        tries = int(raw.get(b"job_try") or 0)
        job_try = tries + 1 if tries or status == RQStatus.STARTED else None
        return replace(found, score=round(due * 1000), job_try=job_try)

    async def result_info(self) -> JobResult | None:
        """The newest result, or None; never raises the job's own exception.

        Raises:
            DeserializationError: the result cannot be read with this serializer.
            QueueUnavailable: with a budget, Redis is away.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xrevrange(self._results_key, count=1)
        pipeline.hgetall(self._key)
        async with within_budget(self._redis):
            entries, raw = await pipeline.execute()
        if not entries:
            return None
        entry = {as_text(name): as_text(value) for name, value in entries[0][1].items()}
        kind = int(entry["type"])
        if kind == _RETRIED:
            self._seen = as_text(entries[0][0])
            return None
        definition = self._known_definition(raw)
        written = int(as_text(entries[0][0]).partition("-")[0]) / 1000
        return JobResult(
            function=definition.function,
            args=definition.args,
            kwargs=definition.kwargs,
            job_try=int(entry["job_try"]) if "job_try" in entry else None,
            enqueue_time=definition.enqueue_time,
            score=None,
            job_id=self.job_id,
            success=kind == _SUCCESSFUL,
            result=self._value_of(entry) if kind == _SUCCESSFUL else self._exception_of(entry),
            start_time=_moment(entry.get("execution_started_at") or written),
            finish_time=_moment(entry.get("execution_ended_at") or written),
            queue_name=as_text(raw.get(b"origin", b"")) or self._queue_name,
        )

    async def result(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - arq's signature
        *,
        poll_delay: float = 0.5,
        pole_delay: float | None = None,
    ) -> Any:
        """The job's return value, waited for without polling; `poll_delay` is there for arq's sake.

        Raises:
            the job's own exception with pickle; otherwise JobExecutionFailed with the last line of its traceback.
            SerializationError: `job_serializer` took the exception and made something else of it.
            CancelledError: it was stopped or cancelled.
            ResultNotFound: there is neither job nor result.
            TimeoutError: after `timeout` seconds.
        """
        del poll_delay
        if pole_delay is not None:
            text = '"pole_delay" is deprecated, use the correct spelling "poll_delay" instead'
            warnings.warn(text, DeprecationWarning, stacklevel=2)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            found = await self.result_info()
            if found is None and await self.status() in {JobStatus.not_found, JobStatus.complete}:
                found = await self.result_info()  # it may have ended between the two questions
                if found is None:
                    await self._raise_without_result()
            if found is None:
                await self._wait_for_entry(deadline)
            elif found.success:
                return found.result
            elif isinstance(found.result, BaseException):
                raise found.result
            else:  # what a `job_serializer` made of it
                raise SerializationError(found.result)

    async def abort(self, *, timeout: float | None = None, poll_delay: float = 0.5) -> bool:  # noqa: ASYNC109
        """Ask for the job to be stopped, then wait: True if it ended as cancelled, False if it ended otherwise.

        A running job's task is cancelled by its worker; a waiting one is moved to the head of the queue and
        recorded as stopped by the worker that takes it. The worker has to allow it (`allow_abort_jobs`).

        Raises:
            TimeoutError: nothing happened within `timeout` seconds.
            the job's failure: if it failed for another reason meanwhile.
        """
        command = json.dumps({"command": "stop-job", "job_id": self._rq_id, "abort": True})
        script = self._redis.register_script(ABORT)
        async with within_budget(self._redis):
            await script((), [RQ_KEY_PREFIX, self._rq_id, ABORT_FIELD, PUBSUB_CHANNEL_TEMPLATE % "", command])
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

    def _known_definition(self, raw: Mapping[bytes, bytes]) -> JobDef:
        """Of a job that is over: it may be so because nobody could read it, or its record may be gone."""
        try:
            if raw:
                return self._definition(raw)
        except DeserializationError:
            pass
        return JobDef("<unknown>", (), {}, None, _moment(0), None, self.job_id)

    def _definition(self, raw: Mapping[bytes, bytes]) -> JobDef:
        try:
            function, _, args, kwargs = self._serializer.loads(unpacked(raw[b"data"]))
        except Exception as exc:
            raise DeserializationError("unable to deserialize job") from exc
        if function == TRAMPOLINE:
            function, *args = args
        return JobDef(
            function=function,
            args=tuple(args),
            kwargs=kwargs,
            job_try=None,
            enqueue_time=displayed(utcparse(as_text(raw[b"created_at"]))),
            score=None,
            job_id=self.job_id,
        )

    def _value_of(self, entry: dict[str, str]) -> Any:
        if not entry.get("return_value"):
            return None
        try:
            return self._serializer.loads(base64.b64decode(entry["return_value"]))
        except Exception as exc:
            raise DeserializationError("unable to deserialize job result") from exc

    def _exception_of(self, entry: dict[str, str]) -> Any:
        if int(entry["type"]) == _STOPPED:
            return asyncio.CancelledError()
        if "exception" in entry:
            error = stored_exception(self._serializer, base64.b64decode(entry["exception"]))
            if error is not None:
                return error
        return failure_of(entry)


def due_seconds(raw: Mapping[bytes, bytes]) -> float:
    """When a job that waits, or runs, was due (unix s): when it was enqueued, unless it was given a time."""
    if due_at := raw.get(b"due_at"):
        return float(due_at)
    return datetime.fromisoformat((raw.get(b"enqueued_at") or raw[b"created_at"]).decode()).timestamp()


def failure_of(entry: Mapping[str, str]) -> BaseException:
    """The failure that a stream entry records, as far as RQ does: its traceback's last line."""
    if int(entry.get("type", 0)) == _STOPPED:
        return asyncio.CancelledError()
    inflating = zlib.decompressobj()
    try:
        text = inflating.decompress(base64.b64decode(entry.get("exc_string", "")), _MOST_TEXT_BYTES).decode()
        if entry.get("exc_string") and not inflating.eof:
            text = f"the job failed, and its traceback has more than {_MOST_TEXT_BYTES} bytes"
    except (ValueError, zlib.error):
        text = "the job failed, and its traceback cannot be read"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return JobExecutionFailed(lines[-1] if lines else "the job failed without a traceback")


def _moment(seconds: str | float) -> datetime:
    return displayed(datetime.fromtimestamp(float(seconds), UTC))


async def _awaited(answer: Any) -> Any:
    """redis-py types its async answers as maybe not awaitable."""
    return await answer
