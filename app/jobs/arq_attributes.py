"""The public attributes of arq's `Worker` (arq 0.28, `arq.worker`) that its parts keep, to be read and set."""

import asyncio
from typing import Any, Generic, TypeVar, cast

from app.jobs.executor import Hook
from app.jobs.serializers import DictDeserializer, DictSerializer
from app.jobs.settings import RedisSettings

Value = TypeVar("Value")


class HandedOn(Generic[Value]):
    """An attribute of one of the worker's parts; to set it changes what the part does from then on."""

    def __init__(self, part: str, name: str) -> None:
        self._part, self._name = part, name

    def __get__(self, worker: Any, owner: type) -> Value:
        """The part's value."""
        return cast("Value", self if worker is None else getattr(getattr(worker, self._part), self._name))

    def __set__(self, worker: Any, value: Value) -> None:
        """Have the part use another."""
        setattr(getattr(worker, self._part), self._name, value)


class Fixed(Generic[Value]):
    """An attribute that the worker's parts were made of: set once, by the constructor."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, worker: Any, owner: type) -> Value:
        """The value."""
        return cast("Value", self if worker is None else vars(worker)[self._name])

    def __set__(self, worker: Any, value: Value) -> None:
        """Set it.

        Raises:
            AttributeError: it has been set; arq would go on with the new one, which here would change nothing.
        """
        if self._name in vars(worker):
            raise AttributeError(f"{self._name} cannot be changed any more: make another worker")
        vars(worker)[self._name] = value


class Attributes:
    """What arq's users read and set beside a worker's own attributes; times in seconds."""

    main_task: asyncio.Task[None] | None = None

    queue_name = Fixed[str]()
    redis_settings = Fixed[RedisSettings | None]()
    job_serializer = Fixed[DictSerializer | None]()
    job_deserializer = Fixed[DictDeserializer | None]()

    ctx = HandedOn[dict[Any, Any]]("_engine", "ctx")
    max_jobs = HandedOn[int]("_engine", "max_jobs")
    max_tries = HandedOn[int]("_engine", "max_tries")
    job_timeout_s = HandedOn[float]("_engine", "job_timeout")
    keep_result_s = HandedOn[float | None]("_engine", "keep_result")
    keep_result_forever = HandedOn[bool]("_engine", "keep_result_forever")
    poll_delay_s = HandedOn[float]("_engine", "poll_seconds")
    retry_jobs = HandedOn[bool]("_engine", "retry_jobs")
    allow_abort_jobs = HandedOn[bool]("_engine", "allow_abort_jobs")
    log_results = HandedOn[bool]("_engine", "log_results")
    on_job_start = HandedOn[Hook | None]("_engine", "on_job_start")
    on_job_end = HandedOn[Hook | None]("_engine", "on_job_end")
    after_job_end = HandedOn[Hook | None]("_engine", "after_job_end")
    jobs_complete = HandedOn[int]("_engine", "jobs_complete")
    jobs_failed = HandedOn[int]("_engine", "jobs_failed")
    jobs_retried = HandedOn[int]("_engine", "jobs_retried")
    health_check_key = HandedOn[str]("_health", "key")
    health_check_interval = HandedOn[float]("_health", "interval_seconds")

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that `async_run` runs in; before that, the caller's.

        Raises:
            RuntimeError: there is none.
        """
        return asyncio.get_running_loop() if self.main_task is None else self.main_task.get_loop()
