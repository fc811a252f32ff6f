"""Enqueueing and looking at queues: arq's `create_pool` and `ArqRedis` (arq 0.28, `arq.connections`)."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime
from operator import attrgetter
from typing import Any

from redis import asyncio as aioredis
from redis.asyncio.connection import Connection
from redis.exceptions import NoScriptError, RedisError
from rq.defaults import RQ_KEY_PREFIX
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.results import Result
from rq.serializers import Serializer
from rq.utils import as_text

from app.jobs.budget import Budget, CircuitBreaker
from app.jobs.coalescing import Coalescer
from app.jobs.enqueue import JobRequest, PackedJob, pack
from app.jobs.functions import Duration
from app.jobs.ids import from_rq_id, to_rq_id
from app.jobs.job import Job
from app.jobs.lua_client import ENQUEUE, WITHDRAW
from app.jobs.serializers import DictDeserializer, DictSerializer, choose_serializer
from app.jobs.settings import MOST_CONNECTIONS, RedisSettings, async_pool, close_sentinels
from app.jobs.values import JobDef, JobResult

logger = logging.getLogger("arq.connections")

DEFAULT_QUEUE = "arq:queue"
DAY_MS = 86_400_000
_MOST_A_SCRIPT = 64
_ANSWER_SECONDS = 10.0
_BLOCKING = frozenset(
    ["BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT", "WAITAOF"]
)
_BLOCKS = "blocks"


class ArqRedis(aioredis.Redis):
    """A `redis.asyncio.Redis` that enqueues; arq's class, RQ's storage.

    `job_serializer` and `job_deserializer` are arq's functions, `serializer` is one of RQ's instead: "json",
    "pickle", a dotted path or an object with `dumps` and `loads`. Jobs expire `expires_extra_ms` after they are
    due. With a `budget`, calls that do not get an answer in time raise `QueueUnavailable`.
    """

    def __init__(  # noqa: PLR0917 - arq's signature
        self,
        pool_or_conn: aioredis.ConnectionPool | None = None,
        job_serializer: DictSerializer | None = None,
        job_deserializer: DictDeserializer | None = None,
        default_queue_name: str = DEFAULT_QUEUE,
        expires_extra_ms: int = DAY_MS,
        *,
        serializer: Serializer | str | None = None,
        budget: Budget | None = None,
        **kwargs: Any,
    ) -> None:
        if pool_or_conn is not None:
            kwargs["connection_pool"] = pool_or_conn
        else:
            kwargs.setdefault("max_connections", MOST_CONNECTIONS)
        self.default_queue_name = default_queue_name
        self.expires_extra_ms = expires_extra_ms
        self._choose(serializer, job_serializer, job_deserializer)
        super().__init__(**kwargs)
        self.settings: RedisSettings | None = None  # how to reach the same Redis, where that is known
        self._breaker = None if budget is None else CircuitBreaker(budget, _place_of(self))
        self._enqueue_script = self.register_script(ENQUEUE)
        self._withdraw_script = self.register_script(WITHDRAW)
        self._coalescer: Coalescer[PackedJob, bool] = Coalescer(self._enqueue)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py; a command that blocks in Redis takes as long as it was told to, not as an answer may."""
        if _blocks(args):
            options[_BLOCKS] = True
        return await super().execute_command(*args, **options)

    async def parse_response(self, connection: Connection, command_name: str | bytes, **options: Any) -> Any:
        """As redis-py."""
        if not options.pop(_BLOCKS, False):
            return await super().parse_response(connection, command_name, **options)
        limit, connection.socket_timeout = connection.socket_timeout, None
        try:
            return await super().parse_response(connection, command_name, **options)
        finally:
            connection.socket_timeout = limit

    @property
    def job_serializer(self) -> DictSerializer | None:
        """arq's, if one was given; another may take its place.

        Raises:
            ValueError: there is an RQ serializer already.
        """
        return self._given[1]

    @job_serializer.setter
    def job_serializer(self, value: DictSerializer | None) -> None:
        self._choose(self._given[0], value, self._given[2])

    @property
    def job_deserializer(self) -> DictDeserializer | None:
        """As `job_serializer`."""
        return self._given[2]

    @job_deserializer.setter
    def job_deserializer(self, value: DictDeserializer | None) -> None:
        self._choose(self._given[0], self._given[1], value)

    def _choose(
        self,
        serializer: Serializer | str | None,
        job_serializer: DictSerializer | None,
        job_deserializer: DictDeserializer | None,
    ) -> None:
        self.serializer = choose_serializer(serializer, job_serializer, job_deserializer)
        self._given = serializer, job_serializer, job_deserializer

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's signature
        """Close the client, and its pool unless that is somebody else's."""
        await super().aclose(close_connection_pool)
        if close_connection_pool or self.auto_close_connection_pool:
            await close_sentinels(self.connection_pool)

    def within_budget(self, jobs: int = 0) -> AbstractAsyncContextManager[None]:
        """Keeps the budget, if there is one, for a block that asks Redis.

        Raises:
            QueueUnavailable: Redis does not answer, or take jobs, in time, or did not a moment ago.
        """
        return nullcontext() if self._breaker is None else self._breaker.guard(jobs)

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

        Calls that are made at the same time share their round trips.

        Raises:
            RuntimeError: both `_defer_until` and `_defer_by`.
            SerializationError: the arguments cannot be serialized.
            QueueUnavailable: with a budget, Redis is away.
        """
        packed = self._pack(
            JobRequest(function, args, kwargs, _job_id, _queue_name, _defer_until, _defer_by, _expires, _job_try)
        )
        return self._job(packed) if await self._coalescer.ask(packed) else None

    async def enqueue_jobs(self, requests: Sequence[JobRequest]) -> list[Job | None]:
        """Enqueue any number of jobs in one round trip; None for each whose id exists.

        Not a transaction: if the connection breaks, some may be enqueued; give ids and repeat.

        Raises:
            as `enqueue_job`; if a request is wrong, none is enqueued.
        """
        packed = [self._pack(request) for request in requests]
        made = await self._enqueue(packed)
        for each in made:
            if isinstance(each, Exception):
                raise each
        return [self._job(each) if is_new else None for each, is_new in zip(packed, made, strict=True)]

    async def withdraw_jobs(self, job_ids: Sequence[str]) -> int:
        """Take back jobs that have not started, without results, dependents or a trace; how many there were.

        For ids that are not used again: where one waits in its queue, it stays there until a worker passes it over.

        Raises:
            QueueUnavailable: with a budget, Redis is away.
        """
        rq_ids = [to_rq_id(each) for each in job_ids]
        withdrawn = 0
        async with self.within_budget(len(rq_ids)):
            for start in range(0, len(rq_ids), _MOST_A_SCRIPT):
                part = rq_ids[start : start + _MOST_A_SCRIPT]
                withdrawn += await self._withdraw_script((), [RQ_KEY_PREFIX, *part])
        return withdrawn

    async def all_job_results(self) -> list[JobResult]:
        """The results of all jobs in Redis, of all queues, by the time they were enqueued."""
        results = []
        async for key in self.scan_iter(match=Result.get_key("*"), count=1000):
            job_id = from_rq_id(as_text(key).removeprefix(Result.get_key("")))
            found = await Job(job_id, self, _deserializer=self.serializer).result_info()
            if found is not None:
                results.append(found)
        return sorted(results, key=attrgetter("enqueue_time"))

    async def queued_jobs(self, *, queue_name: str | None = None) -> list[JobDef]:
        """Jobs of a queue that wait, are due later, or run, by the time they are due.

        Raises:
            RuntimeError: the record of one is gone.
        """
        name = queue_name or self.default_queue_name
        pipeline = self.pipeline(transaction=True)
        pipeline.lrange(Queue.redis_queue_namespace_prefix + name, 0, -1)
        pipeline.zrange(ScheduledJobRegistry.key_template.format(name), 0, -1)
        pipeline.zrange(StartedJobRegistry.key_template.format(name), 0, -1)
        waiting, due_later, running = await pipeline.execute()
        ids = [as_text(each) for each in (*waiting, *due_later)]
        ids += (as_text(member).rpartition(":")[0] for member in running)
        definitions = []
        for rq_id in ids:
            found = await Job(from_rq_id(rq_id), self, name, self.serializer).definition()
            if found is None:
                raise RuntimeError(f'job "{RQJob.key_for(rq_id)}" not found')
            definitions.append(found)
        return sorted(definitions, key=attrgetter("score"))

    def _pack(self, request: JobRequest) -> PackedJob:
        expires_seconds = self.expires_extra_ms / 1000 if self.expires_extra_ms else None
        return pack(request, self.serializer, self.default_queue_name, expires_seconds)

    def _job(self, packed: PackedJob) -> Job:
        return Job(packed.job_id, self, packed.queue_name, self.serializer)

    async def _enqueue(self, jobs: Sequence[PackedJob]) -> list[bool | Exception]:
        """One round trip; whether each was new, or why it could not be enqueued while others could."""
        if not jobs:
            return []
        async with self.within_budget(len(jobs)):
            if len(jobs) <= _MOST_A_SCRIPT:
                made = await self._enqueue_script([Queue.redis_queues_keys], _arguments(jobs))
            else:
                made = await self._enqueue_many(jobs)
            errors = [each for each in made if isinstance(each, Exception)]
            if len(errors) == len(made):  # Redis' fault, most likely: the budget is to see it
                raise errors[0]
        return [
            each if isinstance(each, Exception) else bool(each) or job.is_new_id
            for job, each in zip(jobs, made, strict=True)
        ]

    async def _enqueue_many(self, jobs: Sequence[PackedJob]) -> list[int | Exception]:
        parts = [jobs[start : start + _MOST_A_SCRIPT] for start in range(0, len(jobs), _MOST_A_SCRIPT)]
        made: list[int | Exception] = []
        while parts:
            pipeline = self.pipeline(transaction=False)
            for part in parts:
                pipeline.evalsha(self._enqueue_script.sha, 1, Queue.redis_queues_keys, *_arguments(part))
            answers = await pipeline.execute(raise_on_error=False)
            # a Redis without the script has run none of them: a script does not vanish between two calls
            if isinstance(answers[0], NoScriptError):
                await self.script_load(ENQUEUE)
                continue
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
                made += answer
            return made
        return made


def _blocks(args: Sequence[Any]) -> bool:
    name = str(args[0]).upper()
    if name in {"XREAD", "XREADGROUP"} and b"BLOCK" in args:
        milliseconds = int(args[args.index(b"BLOCK") + 1])
        return milliseconds == 0 or milliseconds >= _ANSWER_SECONDS * 1000
    return name in _BLOCKING


def _arguments(jobs: Sequence[PackedJob]) -> list[Any]:
    arguments: list[Any] = [RQ_KEY_PREFIX]
    for job in jobs:
        arguments += job.arguments
    return arguments


def _place_of(client: aioredis.Redis) -> str:
    given = client.connection_pool.connection_kwargs
    return str(given.get("path") or f"{given.get('host', 'localhost')}:{given.get('port', 6379)}")


def connect_lazily(
    settings: RedisSettings,
    *,
    default_queue_name: str = DEFAULT_QUEUE,
    serializer: Serializer | str | None = None,
    job_serializer: DictSerializer | None = None,
    job_deserializer: DictDeserializer | None = None,
    expires_extra_ms: int = DAY_MS,
    budget: Budget | None = None,
) -> ArqRedis:
    """An `ArqRedis` that connects with its first command: for callers that live on while Redis is away."""
    client = ArqRedis(
        async_pool(settings, socket_timeout=_ANSWER_SECONDS),
        job_serializer,
        job_deserializer,
        default_queue_name,
        expires_extra_ms,
        serializer=serializer,
        budget=budget,
    )
    client.settings = settings
    client.auto_close_connection_pool = True  # the pool is this client's own
    return client


async def create_pool(
    settings_: RedisSettings | None = None,
    *,
    retry: int = 0,
    job_serializer: DictSerializer | None = None,
    job_deserializer: DictDeserializer | None = None,
    default_queue_name: str = DEFAULT_QUEUE,
    expires_extra_ms: int = DAY_MS,
    serializer: Serializer | str | None = None,
    budget: Budget | None = None,
) -> ArqRedis:
    """An `ArqRedis` that has answered a ping, tried `conn_retries` times `conn_retry_delay` seconds apart.

    Raises:
        RedisError, OSError, TimeoutError: the last attempt's error.
        RuntimeError: `sentinel` without a list of (host, port).
    """
    settings = settings_ or RedisSettings()
    pool = connect_lazily(
        settings,
        default_queue_name=default_queue_name,
        serializer=serializer,
        job_serializer=job_serializer,
        job_deserializer=job_deserializer,
        expires_extra_ms=expires_extra_ms,
        budget=budget,
    )
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
                logger.info("redis connection successful")
            return pool


async def log_redis_info(redis: aioredis.Redis, log_func: Callable[[str], Any]) -> None:
    """Tell in one line which Redis this is and how full."""
    pipeline = redis.pipeline(transaction=False)
    for section in ("Server", "Memory", "Clients"):
        pipeline.info(section)
    pipeline.dbsize()
    server, memory, clients, key_count = await pipeline.execute()
    log_func(
        f"redis_version={server.get('redis_version', '?')} mem_usage={memory.get('used_memory_human', '?')} "
        f"clients_connected={clients.get('connected_clients', '?')} db_keys={key_count}"
    )
