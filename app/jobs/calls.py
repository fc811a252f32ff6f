"""Calling a job's function: by arq's name or RQ's path, as a task or in a thread, under its time limit."""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import rq.job
from rq.job import Job as RQJob
from rq.timeouts import JobTimeoutException, TimerDeathPenalty

from app.jobs.ids import from_rq_id
from app.jobs.trampoline import TRAMPOLINE, function_name, import_by_name
from app.jobs.values import JobExecutionFailed

JobFunction = Callable[..., Any]


class JobTimedOut(JobTimeoutException):
    """RQ's timeout with a text of its own: `TimerDeathPenalty` rewrites the initialiser of the class it raises."""

    def __init__(self, seconds: float) -> None:
        Exception.__init__(self, f"Task exceeded maximum timeout value ({seconds:g} seconds)")


class FunctionTable:
    """The functions that may run. Without a list every importable one may, as with RQ."""

    def __init__(self, functions: Mapping[str, JobFunction] | None) -> None:
        self._by_name = functions

    @classmethod
    def of(cls, functions: "list[JobFunction] | None") -> "FunctionTable":
        """A table that knows each function by its own name and by its dotted path."""
        if functions is None:
            return cls(None)
        by_path = {function_name(function): function for function in functions}
        return cls({function.__qualname__: function for function in functions} | by_path)

    def find(self, name: str) -> JobFunction:
        """The function of this name.

        Raises:
            JobExecutionFailed: it is not on the list, or cannot be imported.
        """
        if self._by_name is None:
            return import_by_name(name)
        if name not in self._by_name:
            raise JobExecutionFailed(f"function '{name}' not found")
        return self._by_name[name]


async def call(
    job: RQJob, table: FunctionTable, *, ctx: dict[str, Any], job_try: int, timeout_seconds: float
) -> Any:
    """Run a job's function and return its value.

    Raises:
        JobTimeoutException: it took longer than `timeout_seconds`.
        DeserializationError, JobExecutionFailed: the job cannot be read, or names an unknown function.
        anything that the function raises.
    """
    token = rq.job._current_job.set(job)  # noqa: SLF001 - what `Job.perform` does; get_current_job() reads it
    try:
        function, args = _resolve(job, table, ctx=ctx, job_try=job_try)
        limit = asyncio.timeout(timeout_seconds if timeout_seconds > 0 else None)
        try:
            async with limit:
                if inspect.iscoroutinefunction(function):
                    return await function(*args, **job.kwargs)
                value = await asyncio.to_thread(_call_sync, function, args, job.kwargs, timeout_seconds)
                return await value if inspect.isawaitable(value) else value
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise JobTimedOut(timeout_seconds) from exc
    finally:
        rq.job._current_job.reset(token)  # noqa: SLF001 - as above


def _resolve(
    job: RQJob, table: FunctionTable, *, ctx: dict[str, Any], job_try: int
) -> tuple[JobFunction, tuple[Any, ...]]:
    args = tuple(job.args)
    if job.func_name != TRAMPOLINE:
        if job.instance is not None:
            return job.func, args
        return table.find(job.func_name or ""), args
    own_ctx = {
        **ctx,
        "job_id": from_rq_id(job.id),
        "job_try": job_try,
        "enqueue_time": job.enqueued_at,
        "score": None if job.enqueued_at is None else int(job.enqueued_at.timestamp() * 1000),
    }
    return table.find(args[0]), (own_ctx, *args[1:])


def _call_sync(function: JobFunction, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_seconds: float) -> Any:
    if timeout_seconds <= 0:
        return function(*args, **kwargs)
    in_this_call = type("JobTimeoutException", (JobTimeoutException,), {})
    with TimerDeathPenalty(timeout_seconds, in_this_call):
        return function(*args, **kwargs)
