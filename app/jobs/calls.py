"""Calling a job's function: by arq's name or RQ's path, as a task or in a thread, under its time limit."""

import asyncio
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rq.exceptions import DeserializationError as RQDeserializationError
from rq.queue import Queue
from rq.timeouts import JobTimeoutException

from app.jobs.cron import CronJob
from app.jobs.functions import Function
from app.jobs.running import Running
from app.jobs.serializers import unpacked
from app.jobs.threads import Threads
from app.jobs.trampoline import TRAMPOLINE, function_name, import_by_name
from app.jobs.values import DeserializationError, JobExecutionFailed

JobFunction = Callable[..., Any]
Functions = Sequence[Function | JobFunction] | Mapping[str, Function | CronJob]

MOST_BODY_BYTES = 16 * 1024 * 1024


class JobTimedOut(JobTimeoutException):
    """RQ's timeout with a text of its own: `TimerDeathPenalty` rewrites the initialiser of the class it raises."""

    def __init__(self, seconds: float) -> None:
        Exception.__init__(self, f"Task exceeded maximum timeout value ({seconds:g} seconds)")


class _TimedOutInThread(JobTimeoutException):
    """Raised where the function was, which may catch it as RQ's."""


class JobRefused(JobExecutionFailed):
    """The job asks for what this worker does not do for whoever can write to Redis."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a job calls; `limits` is how arq's function was registered."""

    name: str
    function: JobFunction
    args: Sequence[Any]
    kwargs: dict[str, Any]
    is_arqs: bool
    is_coroutine: bool
    limits: Function | None


class FunctionTable:
    """The functions that may run. Without a list every importable one may, as with RQ; a dict may change."""

    def __init__(self, functions: Functions | None) -> None:
        self._by_name = None if functions is None else _by_name(functions)

    def find(self, name: str) -> tuple[JobFunction, Function | None]:
        """The function of this name, and how it was registered.

        Raises:
            JobExecutionFailed: it is not on the list, or cannot be imported.
        """
        if self._by_name is None:
            return import_by_name(name), None
        found = self._by_name.get(name)
        if found is None:
            raise JobExecutionFailed(f"function {name!r} not found")
        return found.coroutine, found.as_function() if isinstance(found, CronJob) else found


def _by_name(functions: Functions) -> Mapping[str, Function | CronJob]:
    if isinstance(functions, Mapping):
        return functions
    by_name = {}
    for each in functions:
        if isinstance(each, Function):
            by_name[each.name] = each
        else:
            named = Function(each.__qualname__, each, None, None, None, None)
            by_name |= {each.__qualname__: named, function_name(each): named}
    return by_name


class CallReader:
    """Reads what jobs call.

    With `most_bytes` the reader trusts nobody who can write to Redis: a larger body, an instance, callbacks and
    webhooks are refused.
    """

    def __init__(self, table: FunctionTable, most_bytes: int | None) -> None:
        self._table = table
        self._most_bytes = most_bytes

    def read(self, running: Running) -> Call:
        """What the job calls.

        Raises:
            JobRefused: it asks for too much.
            DeserializationError: the body cannot be read.
            JobExecutionFailed: it names an unknown function.
        """
        try:
            name, instance, args, kwargs = running.serializer.loads(self._body(running))
        except JobRefused:
            raise
        except Exception as exc:
            if running.is_arqs:
                raise DeserializationError("unable to deserialize job") from exc
            raise RQDeserializationError from exc
        if self._most_bytes is not None:
            self._refuse(running, has_instance=instance is not None)
        running.is_arqs = name == TRAMPOLINE
        if running.is_arqs:
            function, limits = self._table.find(args[0])
            return Call(args[0], function, args[1:], kwargs, True, _is_coroutine(function), limits)
        if instance is not None:
            function = getattr(instance, name)
            return Call(name, function, args, kwargs, False, inspect.iscoroutinefunction(function), None)
        function, limits = self._table.find(name)
        return Call(name, function, args, kwargs, False, _is_coroutine(function), limits)

    def _body(self, running: Running) -> bytes:
        packed = running.raw[b"data"]
        if self._most_bytes is None:
            return unpacked(packed)
        inflating = zlib.decompressobj()
        try:
            body = inflating.decompress(packed, self._most_bytes)
            is_all = inflating.eof
        except zlib.error:
            body, is_all = packed, True  # as in `unpacked`
        if len(body) > self._most_bytes or not is_all:
            raise JobRefused(f"the job's arguments have more than {self._most_bytes} bytes, which is refused here")
        return body

    def _refuse(self, running: Running, *, has_instance: bool) -> None:
        raw = running.raw
        asked = [name for name in ("success", "failure", "stopped") if raw.get(f"{name}_callback_name".encode())]
        if asked or raw.get(b"webhooks") or has_instance:
            what = f"a {asked[0]} callback" if asked else "a webhook" if raw.get(b"webhooks") else "an instance"
            raise JobRefused(f"the job brings {what}, which a worker with the JSON serializer refuses")


@functools.lru_cache(maxsize=1024)
def _is_coroutine(function: JobFunction) -> bool:
    return inspect.iscoroutinefunction(function)


async def perform(call: Call, args: Sequence[Any], timeout_seconds: float, threads: Threads) -> Any:
    """Run a job's function and return its value.

    Raises:
        JobTimeoutException: it took longer than `timeout_seconds`.
        anything that the function raises.
    """
    function = functools.partial(call.function, *args, **call.kwargs)
    limit = asyncio.timeout(timeout_seconds if timeout_seconds > 0 else None)

    def interruption() -> type[BaseException]:
        return _timeout_in_thread(timeout_seconds) if limit.expired() else asyncio.CancelledError

    try:
        async with limit:
            if call.is_coroutine:
                return await function()
            value = await threads.run_job(function, interruption)
            return await value if inspect.isawaitable(value) else value
    except (TimeoutError, _TimedOutInThread) as exc:
        if not limit.expired():
            raise
        raise JobTimedOut(timeout_seconds) from exc


def _timeout_in_thread(seconds: float) -> type[_TimedOutInThread]:
    """A class, for that is all that can be raised in a thread."""
    text = str(JobTimedOut(seconds))
    initialize = functools.partialmethod(Exception.__init__, text)
    return type("JobTimeoutException", (_TimedOutInThread,), {"__init__": initialize})


def timeout_of(running: Running, call: Call, default_seconds: float) -> float:
    """Seconds that a job may run: for arq's jobs its function's, its own or the worker's; for RQ's its own."""
    own = running.raw.get(b"timeout")
    if call.is_arqs:
        if call.limits is not None and call.limits.timeout_s is not None:
            return call.limits.timeout_s
        return float(own) if own else default_seconds
    return float(own) if own else float(Queue.DEFAULT_TIMEOUT)
