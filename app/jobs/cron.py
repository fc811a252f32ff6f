"""Cron jobs of arq's API (arq 0.28, `arq.cron`): when they are due, and enqueueing them, once for all workers."""

import inspect
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

from rq.cron import get_cron_job_history_key
from rq.cron_job_registry import get_registry_key
from rq.defaults import DEFAULT_CRON_JOB_HISTORY_LIMIT, DEFAULT_CRON_JOB_HISTORY_TTL

from app.jobs.functions import CronFunction, Duration, Function, seconds_of
from app.jobs.ids import to_rq_id
from app.jobs.trampoline import import_string

if TYPE_CHECKING:
    from app.jobs.client import ArqRedis

Option = int | AbstractSet[int] | list[int] | tuple[int, ...] | None
WEEKDAYS = ("mon", "tues", "wed", "thurs", "fri", "sat", "sun")
_MOST_DAYS = 366 * 40
"""The longest wait for a date that exists: 29 February on a given weekday, across the year 2100."""
_AHEAD_SECONDS = 1.0
"""So long before it is due a cron job is enqueued, deferred, as arq's two windows of half a second."""
_BLOCKED_SECONDS = 60


def next_cron(
    previous_dt: datetime,
    *,
    month: Option = None,
    day: Option = None,
    weekday: Option | str = None,
    hour: Option = None,
    minute: Option = None,
    second: Option = 0,
    microsecond: int = 123_456,
) -> datetime:
    """The first moment, at least a second after `previous_dt` to the second, that fits; in the same zone.

    Raises:
        RuntimeError: an option is neither None, a number nor a set of numbers, or there is no such moment.
    """
    start = (previous_dt + timedelta(seconds=1)).replace(microsecond=0)
    if isinstance(weekday, str):
        weekday = WEEKDAYS.index(weekday.lower())
    months, days, weekdays = _allowed(month, range(1, 13)), _allowed(day, range(1, 32)), _allowed(weekday, range(7))
    clock = (_allowed(hour, range(24)), _allowed(minute, range(60)), _allowed(second, range(60)))
    for ahead in range(_MOST_DAYS):
        date = start + timedelta(days=ahead)
        if date.month not in months or date.day not in days or date.weekday() not in weekdays:
            continue
        at = _first_time(clock, (start.hour, start.minute, start.second) if ahead == 0 else (0, 0, 0))
        if at is not None:
            return date.replace(hour=at[0], minute=at[1], second=at[2], microsecond=microsecond)
    raise RuntimeError(f"there is no such date: {month=} {day=} {weekday=}")


def _allowed(option: Any, everything: range) -> list[int]:
    if option is None:
        return list(everything)
    if isinstance(option, int):
        return [option]
    if isinstance(option, AbstractSet | list | tuple):
        return sorted(option)
    raise RuntimeError(option)


def _first_time(
    clock: tuple[list[int], list[int], list[int]], earliest: tuple[int, int, int]
) -> tuple[int, int, int] | None:
    """The first (hour, minute, second) of those allowed that is not before `earliest`."""
    return next(
        (
            (hour, minute, second)
            for hour in clock[0]
            if hour >= earliest[0]
            for minute in clock[1]
            if (hour, minute) >= earliest[:2]
            for second in clock[2]
            if (hour, minute, second) >= earliest
        ),
        None,
    )


@dataclass
class CronJob:
    """A function and when it is to run; see `cron`. Times in seconds."""

    name: str
    coroutine: Callable[..., Any]
    month: Option
    day: Option
    weekday: Option | str
    hour: Option
    minute: Option
    second: Option
    microsecond: int
    run_at_startup: bool
    unique: bool
    job_id: str | None
    timeout_s: float | None
    keep_result_s: float | None
    keep_result_forever: bool | None
    max_tries: int | None
    next_run: datetime | None = None

    def calculate_next(self, prev_run: datetime) -> None:
        """Set `next_run` to the first moment after `prev_run` that fits."""
        self.next_run = next_cron(
            prev_run,
            month=self.month,
            day=self.day,
            weekday=self.weekday,
            hour=self.hour,
            minute=self.minute,
            second=self.second,
            microsecond=self.microsecond,
        )

    def __repr__(self) -> str:
        return f"<CronJob {' '.join(f'{name}={value}' for name, value in self.__dict__.items())}>"

    def as_function(self) -> Function:
        """What a worker runs. Its record stays for a minute: that is what keeps its id from running again."""
        keep = None if self.keep_result_s is None else max(self.keep_result_s, _BLOCKED_SECONDS)
        return CronFunction(
            self.name, self.coroutine, self.timeout_s, keep, self.keep_result_forever, self.max_tries
        )


def cron(  # noqa: PLR0913 - arq's signature
    coroutine: str | Callable[..., Any],
    *,
    name: str | None = None,
    month: Option = None,
    day: Option = None,
    weekday: Option | str = None,
    hour: Option = None,
    minute: Option = None,
    second: Option = 0,
    microsecond: int = 123_456,
    run_at_startup: bool = False,
    unique: bool = True,
    job_id: str | None = None,
    timeout: Duration | None = None,
    keep_result: Duration | None = 0,
    keep_result_forever: bool | None = False,
    max_tries: int | None = 1,
) -> CronJob:
    """A job that runs at given times, in the worker's time zone; None is every one.

    `weekday` is 0 to 6 or mon, tues, wed, thurs, fri, sat, sun. With `unique` one of many workers runs it.

    Raises:
        RuntimeError: it is no coroutine function.
        ImportError: nothing can be imported from that path.
    """
    if isinstance(coroutine, str):
        name = name or f"cron:{coroutine}"
        coroutine = import_string(coroutine)
    if not inspect.iscoroutinefunction(coroutine):
        raise RuntimeError(f"{coroutine} is not a coroutine function")
    return CronJob(
        name or f"cron:{coroutine.__qualname__}",
        coroutine,
        month,
        day,
        weekday,
        hour,
        minute,
        second,
        microsecond,
        run_at_startup,
        unique,
        job_id,
        seconds_of(timeout),
        seconds_of(keep_result),
        keep_result_forever,
        max_tries,
    )


async def enqueue_due(
    jobs: Iterable[CronJob], redis: "ArqRedis", queue_name: str, zone: tzinfo | None
) -> float | None:
    """Enqueue the cron jobs that are due within a second; seconds until the next one has to be."""
    here = datetime.now(zone)
    pauses = []
    for job in jobs:
        if job.next_run is None and job.run_at_startup:
            job.next_run = here
        elif job.next_run is None:
            job.calculate_next(here)
        while (due := _due_of(job)) < here + timedelta(seconds=_AHEAD_SECONDS):
            # by the clock on the wall, as arq: a time that a change of the clock left out is due at once
            await _enqueue(job, due, redis, queue_name, is_due=due <= datetime.now(zone))
            job.calculate_next(max(due, here))
        pauses.append((due - here).total_seconds() - _AHEAD_SECONDS)
    return min(pauses, default=None)


def _due_of(job: CronJob) -> datetime:
    if job.next_run is None:
        raise RuntimeError(f"{job.name} has no next run")
    return job.next_run


async def _enqueue(job: CronJob, due: datetime, redis: "ArqRedis", queue_name: str, *, is_due: bool) -> None:
    job_id = job.job_id or (f"{job.name}:{round(due.timestamp() * 1000)}" if job.unique else None)
    until = None if is_due else due
    made = await redis.enqueue_job(job.name, _job_id=job_id, _queue_name=queue_name, _defer_until=until)
    if made is None:  # another worker was first
        return
    history = get_cron_job_history_key(job.name)
    pipeline = redis.pipeline(transaction=False)  # as rq.cron.CronJob.enqueue: RQ's tools list it
    pipeline.zadd(history, {to_rq_id(made.job_id): due.timestamp()})
    pipeline.zremrangebyrank(history, 0, -(DEFAULT_CRON_JOB_HISTORY_LIMIT + 1))
    pipeline.expire(history, DEFAULT_CRON_JOB_HISTORY_TTL)
    pipeline.zadd(get_registry_key(), {job.name: due.timestamp()})
    await pipeline.execute()
