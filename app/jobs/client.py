"""Enqueueing: arq's `create_pool` and `ArqRedis`, writing what RQ's own code would write.

RQ builds the job (`Job.create`, `Job.to_dict`), and its scripts (rq.scripts: `UNIQUE_ENQUEUE_SCRIPT`,
`UNIQUE_SCHEDULE_SCRIPT`) store it: the existence check, the hash and the list in one call, so that arq's
"None if the id exists" holds in a race, and any number of jobs takes one round trip.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from redis import asyncio as aioredis
from redis.exceptions import RedisError
from rq.job import Job as RQJob
from rq.job import JobStatus as RQStatus
from rq.queue import Queue
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry, ScheduledJobRegistry
from rq.results import Result
from rq.scripts import UNIQUE_ENQUEUE_SCRIPT, UNIQUE_SCHEDULE_SCRIPT, _build_hset_args
from rq.serializers import Serializer, resolve_serializer
from rq.utils import now

from app.jobs.ids import to_rq_id
from app.jobs.job import Job
from app.jobs.lua import FORGET_SETTLED
from app.jobs.settings import RedisSettings, async_pool, sync_client
from app.jobs.trampoline import TRAMPOLINE
from app.jobs.values import SerializationError

logger = logging.getLogger("app.jobs.client")

DEFAULT_QUEUE = "arq:queue"
_KEEP_SECONDS = 3600
_ANSWER_SECONDS = 10.0

Duration = float | timedelta


def _seconds(value: Duration | None) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to enqueue, with arq's options without their underscores; times in seconds or timedelta.

    `replace_settled`: an earlier job of this id that is over makes way, instead of keeping the id for as long as
    its result is kept.
    """

    function: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    job_id: str | None = None
    queue_name: str | None = None
    defer_until: datetime | None = None
    defer_by: Duration | None = None
    expires: Duration | None = None
    job_try: int | None = None
    timeout: Duration | None = None
    result_ttl: int = _KEEP_SECONDS
    failure_ttl: int = _KEEP_SECONDS
    replace_settled: bool = False

    def due_at(self) -> datetime | None:
        """When it may run; None is at once.

        Raises:
            RuntimeError: both `defer_until` and `defer_by` are given.
        """
        if self.defer_until is not None and self.defer_by is not None:
            raise RuntimeError("use either 'defer_until' or 'defer_by' or neither, not both")
        if self.defer_by is not None:
            return now() + timedelta(seconds=_seconds(self.defer_by) or 0)
        return self.defer_until


class ArqRedis(aioredis.Redis):
    """A `redis.asyncio.Redis` that enqueues; arq's class, RQ's storage."""

    def __init__(
        self,
        pool_or_conn: aioredis.ConnectionPool | None = None,
        *,
        serializer: Serializer | str | None = None,
        default_queue_name: str = DEFAULT_QUEUE,
        settings: RedisSettings | None = None,
        **kwargs: Any,
    ) -> None:
        if pool_or_conn is not None:
            kwargs["connection_pool"] = pool_or_conn
        self.default_queue_name = default_queue_name
        self.job_serializer = resolve_serializer(serializer)
        # RQ's objects want a connection to be built with; nothing here ever sends a command on it
        self._unused = sync_client(settings or RedisSettings(), socket_timeout=None)
        super().__init__(**kwargs)

    async def enqueue_job(
        self,
        function: str,
        *args: Any,
        _job_id: str | None = None,
        _queue_name: str | None = None,
        _defer_until: datetime | None = None,
        _defer_by: Duration | None = None,
        _expires: Duration | None = None,
        _job_try: int | None = None,
        **kwargs: Any,
    ) -> Job | None:
        """Enqueue a job by name; None if a job or a result of this id is there.

        Raises:
            RuntimeError: both `_defer_until` and `_defer_by`.
            SerializationError: the arguments cannot be serialized.
        """
        request = JobRequest(
            function,
            args,
            kwargs,
            job_id=_job_id,
            queue_name=_queue_name,
            defer_until=_defer_until,
            defer_by=_defer_by,
            expires=_expires,
            job_try=_job_try,
        )
        return (await self.enqueue_jobs([request]))[0]

    async def enqueue_jobs(self, requests: Sequence[JobRequest]) -> list[Job | None]:
        """Enqueue any number of jobs in one round trip; None for each whose id exists.

        Not a transaction: if the connection breaks, some may be enqueued; give ids and repeat.

        Raises:
            as `enqueue_job`; then none is enqueued.
        """
        jobs = [self._build(request) for request in requests]
        pipeline = self.pipeline(transaction=False)
        for request, job in zip(requests, jobs, strict=True):
            if request.replace_settled:
                _buffer_forget(pipeline, job)
        for request, job in zip(requests, jobs, strict=True):
            _buffer(pipeline, job, due_at=request.due_at())
        for queue_key in {Queue.redis_queue_namespace_prefix + job.origin for job in jobs}:
            pipeline.sadd(Queue.redis_queues_keys, queue_key)
        answers = await pipeline.execute() if jobs else []
        made_or_not = answers[sum(request.replace_settled for request in requests) :]
        return [
            Job(request.job_id or job.id, self, job.origin, _deserializer=self.job_serializer) if made else None
            for request, job, made in zip(requests, jobs, made_or_not, strict=False)
        ]

    def _build(self, request: JobRequest) -> RQJob:
        timeout = _seconds(request.timeout)
        expires = _seconds(request.expires)
        call = ", ".join([*map(repr, request.args), *(f"{k}={v!r}" for k, v in request.kwargs.items())])
        job = RQJob.create(
            TRAMPOLINE,
            args=(request.function, *request.args),
            kwargs=dict(request.kwargs),
            connection=self._unused,
            id=to_rq_id(request.job_id or uuid4().hex),
            origin=request.queue_name or self.default_queue_name,
            description=f"{request.function}({call})"[:500],
            timeout=int(timeout) if timeout else None,  # None: the worker's own
            result_ttl=request.result_ttl,
            failure_ttl=request.failure_ttl,
            ttl=int(expires) if expires else None,
            serializer=self.job_serializer,
        )
        if request.job_try:
            job.number_of_retries = request.job_try - 1
        job.enqueued_at = now()
        try:
            job.data  # noqa: B018 - serializes now, while the caller is here to be told
        except Exception as exc:
            raise SerializationError(f'unable to serialize job "{request.function}"') from exc
        return job


def _buffer(pipeline: Any, job: RQJob, *, due_at: datetime | None) -> None:
    """Put RQ's own script for this job on the pipeline (rq.scripts.save_unique_job, schedule_unique_job)."""
    queue_key = Queue.redis_queue_namespace_prefix + job.origin
    ttl = job.ttl if job.ttl is not None else -1
    if due_at is None or due_at <= now():
        job._status = RQStatus.QUEUED  # noqa: SLF001 - the setter would write to Redis at once
        script, keys, head = UNIQUE_ENQUEUE_SCRIPT, [job.key, queue_key], [job.id, "R", ttl]
    else:
        job._status = RQStatus.SCHEDULED  # noqa: SLF001 - likewise
        registry = ScheduledJobRegistry.key_template.format(job.origin)
        script = UNIQUE_SCHEDULE_SCRIPT
        keys = [job.key, registry, Queue.redis_queues_keys]
        score = due_at.astimezone(UTC).timestamp()
        head = [job.id, ttl, score, queue_key]
    pipeline.eval(script, len(keys), *keys, *head, *_build_hset_args(job))


def _buffer_forget(pipeline: Any, job: RQJob) -> None:
    registries = (FinishedJobRegistry, FailedJobRegistry, CanceledJobRegistry)
    keys = [job.key, Result.get_key(job.id), *(each.key_template.format(job.origin) for each in registries)]
    pipeline.eval(FORGET_SETTLED, len(keys), *keys, job.id)


def connect_lazily(
    settings: RedisSettings,
    *,
    default_queue_name: str = DEFAULT_QUEUE,
    serializer: Serializer | str | None = None,
) -> ArqRedis:
    """An `ArqRedis` that connects with its first command: for callers that live on while Redis is away."""
    client = ArqRedis(
        async_pool(settings, socket_timeout=_ANSWER_SECONDS),
        serializer=serializer,
        default_queue_name=default_queue_name,
        settings=settings,
    )
    client.auto_close_connection_pool = True  # the pool is this client's own
    return client


async def create_pool(
    settings_: RedisSettings | None = None,
    *,
    retry: int = 0,
    default_queue_name: str = DEFAULT_QUEUE,
    serializer: Serializer | str | None = None,
) -> ArqRedis:
    """An `ArqRedis` that has answered a ping, tried `conn_retries` times `conn_retry_delay` seconds apart.

    Raises:
        RedisError, OSError, TimeoutError: the last attempt's error.
    """
    settings = settings_ or RedisSettings()
    pool = connect_lazily(settings, default_queue_name=default_queue_name, serializer=serializer)
    started = time.monotonic()
    while True:
        try:
            await pool.ping()
        except (RedisError, OSError, TimeoutError) as exc:
            if retry >= settings.conn_retries:
                await pool.aclose()
                raise
            logger.warning(
                "redis connection error %s:%s %s %s, %d retries remaining...",
                settings.host,
                settings.port,
                type(exc).__name__,
                exc,
                settings.conn_retries - retry,
            )
            await asyncio.sleep(settings.conn_retry_delay)
            retry += 1
        else:
            if retry:
                logger.info("redis connection successful after %.1f s", time.monotonic() - started)
            return pool
