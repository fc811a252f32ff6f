"""The values and exceptions of arq's API (arq 0.28, `arq.jobs`, `arq.worker`), and RQ's view of a job."""

import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import Enum
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

logger = logging.getLogger("app.jobs.values")

_ZONE_VARIABLES = ("ARQ_TIMEZONE", "arq_timezone", "TIMEZONE", "timezone")


class JobStatus(str, Enum):  # noqa: UP042 - arq's bases: str() of a member shows its class
    """What arq says of a job."""

    deferred = "deferred"
    queued = "queued"
    in_progress = "in_progress"
    complete = "complete"
    not_found = "not_found"


@dataclass
class JobDef:
    """A job as it was enqueued; `score` is the time it is due, in ms since the epoch, None once it is over.

    `job_try` is None before the first run, or where `_job_try` was given, that. As in arq `enqueue_time` is the
    epoch where it is not known any more, and callers may change what they were given.
    """

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    job_try: int | None
    enqueue_time: datetime
    score: int | None
    job_id: str

    def __post_init__(self) -> None:
        if self.score is not None:
            self.score = int(self.score)


@dataclass
class JobResult(JobDef):
    """A job that is over; `result` is the exception if it failed."""

    success: bool
    result: Any
    start_time: datetime
    finish_time: datetime
    queue_name: str


@dataclass(frozen=True, slots=True)
class JobView:
    """What RQ stores of a job: `status` is RQ's word, `error` the last line of its traceback."""

    job_id: str
    status: str
    enqueued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    worker_name: str | None
    error: str | None


class ResultNotFound(RuntimeError):
    """There is neither such a job nor a result of it."""


class SerializationError(RuntimeError):
    """Arguments or a result cannot be serialized."""


class DeserializationError(SerializationError):
    """What Redis holds of a job cannot be read with this serializer."""


class JobExecutionFailed(RuntimeError):
    """The job failed, and all that is known of why is this text."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobExecutionFailed) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


class Retry(RuntimeError):
    """Raise it in a job to run again after `defer` seconds; the run counts as a try.

    `defer_score` is the delay in whole ms, None if none was given; a subclass may set just that, as with arq.
    """

    defer_score: int | None = None

    def __init__(self, defer: float | timedelta | None = None) -> None:
        seconds = defer.total_seconds() if isinstance(defer, timedelta) else defer
        self.defer_score = None if seconds is None else round(seconds * 1000)

    @property
    def defer_seconds(self) -> float:
        """The delay in seconds, 0 if none was given."""
        return (self.defer_score or 0) / 1000

    def __repr__(self) -> str:
        return f"<Retry defer {self.defer_seconds:0.2f}s>"

    def __str__(self) -> str:
        return repr(self)


def displayed(moment: datetime) -> datetime:
    """A moment in the zone that ARQ_TIMEZONE (or TIMEZONE, in either case) names, else in UTC."""
    return moment.astimezone(display_zone())


@lru_cache
def display_zone() -> tzinfo:
    """The zone of `displayed`; as arq, the environment is read once."""
    for variable in _ZONE_VARIABLES:
        name = os.environ.get(variable)
        if not name:
            continue
        try:
            return ZoneInfo(name)
        except (
            ZoneInfoNotFoundError,
            ValueError,
            OSError,
        ):  # a path, a folder: no such zone
            logger.warning("unknown timezone: %r", name)
    return UTC
