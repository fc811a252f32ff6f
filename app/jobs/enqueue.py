"""What is to be enqueued, and the record that the script of `app.jobs.lua_client` makes a job of."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

from rq.serializers import Serializer
from rq.utils import get_call_string, now, utcformat

from app.jobs.functions import Duration, seconds_of
from app.jobs.ids import to_rq_id
from app.jobs.trampoline import TRAMPOLINE
from app.jobs.values import SerializationError

_KEEP_SECONDS = 3600
_MOST_SHOWN = 75
_LIGHTLY = 1
"""How much zlib tries: arguments are short, and RQ reads every level."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to enqueue, with arq's options without their underscores; times in seconds or timedelta.

    `expires`: it fails if it has not started so long after it was due. `replace_settled`: an earlier job of this
    id that is over makes way, instead of keeping the id for as long as its result is kept.
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


@dataclass(frozen=True, slots=True)
class PackedJob:
    """A request as the script takes it."""

    job_id: str
    is_new_id: bool  # nobody can have it: a second sending that finds it taken has found the first one
    queue_name: str
    arguments: Sequence[Any]


def pack(request: JobRequest, serializer: Serializer, queue_name: str, expires_seconds: float | None) -> PackedJob:
    """Pack a request; `queue_name` and `expires_seconds` (after it is due) are for one that gives none.

    Raises:
        RuntimeError: both `defer_until` and `defer_by` are given.
        SerializationError: the arguments cannot be serialized.
    """
    job_id = request.job_id or uuid4().hex
    queue_name = request.queue_name or queue_name
    kwargs = dict(request.kwargs)
    try:
        body = serializer.dumps((TRAMPOLINE, None, (request.function, *request.args), kwargs))
    except Exception as exc:
        raise SerializationError(f'unable to serialize job "{request.function}"') from exc
    timeout = seconds_of(request.timeout)
    line = (
        f"{to_rq_id(job_id)} {_when(request)} {_expires(request, expires_seconds)} {utcformat(now())} "
        f"{math.ceil(timeout) if timeout else '-'} {request.result_ttl} {request.failure_ttl} "
        f"{request.job_try or 1} {int(request.replace_settled)} {queue_name}"
    )
    arguments = (line, zlib.compress(body, _LIGHTLY), _shown(request, kwargs))
    return PackedJob(job_id, request.job_id is None, queue_name, arguments)


def _shown(request: JobRequest, kwargs: dict[str, Any]) -> str:
    """RQ's description of the call."""
    try:
        return get_call_string(request.function, request.args, kwargs, max_length=_MOST_SHOWN) or ""
    except Exception:  # noqa: BLE001 - an argument's repr may raise anything, and is no reason to refuse it
        return f"{request.function}(...)"


def _when(request: JobRequest) -> str:
    if request.defer_until and request.defer_by:
        raise RuntimeError("use either 'defer_until' or 'defer_by' or neither, not both")
    if request.defer_until is not None:
        return f"{request.defer_until.timestamp():.6f}"
    delay = seconds_of(request.defer_by) or 0.0
    return f"+{delay:.6f}" if delay > 0 else "-"


def _expires(request: JobRequest, default_seconds: float | None) -> float | str:
    """Seconds after it is due: arq counts its own from now, and its default from then."""
    given = seconds_of(request.expires)
    if not given:
        return "-" if default_seconds is None else default_seconds
    until_due = seconds_of(request.defer_by) or 0.0
    if request.defer_until is not None:
        until_due = request.defer_until.timestamp() - now().timestamp()
    return given - max(0.0, until_due)
