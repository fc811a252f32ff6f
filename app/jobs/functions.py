"""How arq's functions are registered: `Function`, `func` and `RetryJob` (arq 0.28, `arq.worker`)."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from app.jobs.trampoline import import_string

Duration = float | timedelta


class RetryJob(RuntimeError):
    """Raise it in a job to run again at once; the run counts as a try."""


@dataclass
class Function:
    """A function that a worker may run; None leaves a limit to the worker. Times in seconds."""

    name: str
    coroutine: Callable[..., Any]
    timeout_s: float | None
    keep_result_s: float | None
    keep_result_forever: bool | None
    max_tries: int | None


@dataclass
class CronFunction(Function):
    """What a worker runs of a cron job."""


def seconds_of(value: Duration | None) -> float | None:
    """A duration in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def func(
    coroutine: str | Function | Callable[..., Any],
    *,
    name: str | None = None,
    keep_result: Duration | None = None,
    timeout: Duration | None = None,
    keep_result_forever: bool | None = None,
    max_tries: int | None = None,
) -> Function:
    """A coroutine function, or the dotted path of one, with limits of its own.

    Raises:
        RuntimeError: it is no coroutine function.
        ImportError: nothing can be imported from that path.
    """
    if isinstance(coroutine, Function):
        return coroutine
    if isinstance(coroutine, str):
        name = name or coroutine
        coroutine = import_string(coroutine)
    if not inspect.iscoroutinefunction(coroutine):
        raise RuntimeError(f"{coroutine} is not a coroutine function")
    return Function(
        name or coroutine.__qualname__,
        coroutine,
        seconds_of(timeout),
        seconds_of(keep_result),
        keep_result_forever,
        max_tries,
    )
