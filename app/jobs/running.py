"""A claimed job: RQ's execution record, the job's hash as it was read, its task, and how it ended."""

import asyncio
import traceback
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rq import Retry as RQRetry
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.serializers import Serializer
from rq.utils import utcformat

from app.jobs.values import JobExecutionFailed

if TYPE_CHECKING:
    from app.jobs.calls import Call


class WorkHorseKilled(JobExecutionFailed):
    """Somebody had RQ's work horse killed, which here means all running jobs."""

    def __init__(self) -> None:
        super().__init__("Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); ")


@dataclass(frozen=True, slots=True)
class Succeeded:
    """It returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Errored:
    """It raised, or was not to start."""

    error: BaseException
    is_expired: bool = False
    most_tries: int | None = None  # of which it has had more

    @property
    def exc_string(self) -> str:
        """The traceback, as RQ stores it."""
        if isinstance(self.error, WorkHorseKilled):
            return str(self.error)
        return "".join(traceback.format_exception(self.error))


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """It wants to run again, after a delay or (None) at once."""

    delay_seconds: float | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Somebody stopped it."""


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The worker shuts down; it runs again."""


Ending = Succeeded | Errored | AskedAgain | Stopped | GivenBack

_RQS_BUSINESS = (
    b"success_callback_name",
    b"failure_callback_name",
    b"stopped_callback_name",
    b"webhooks",
    b"repeats_left",
    b"rate_limit_key",
)
"""A job that has one of these is settled by RQ's own code."""


class LazyJob(RQJob):
    """RQ's job, read from its hash when somebody first looks: most functions never ask for it."""

    def __init__(self, running: "Running") -> None:
        self.__dict__["_unread"] = running

    def __getattr__(self, name: str) -> Any:
        if "_unread" not in self.__dict__:
            raise AttributeError(name)
        self._read()
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_unread" in self.__dict__:
            self._read()
        super().__setattr__(name, value)

    @property
    def is_read(self) -> bool:
        """Whether somebody has looked, and may have changed it."""
        return "_unread" not in self.__dict__

    def _read(self) -> None:
        running: Running = self.__dict__.pop("_unread")
        super().__init__(running.job_id, connection=running.connection, serializer=running.serializer)
        moment = utcformat(running.created_at).encode()
        now_so = {
            b"status": b"started",
            b"started_at": moment,
            b"last_heartbeat": moment,
            b"worker_name": running.worker_name.encode(),
        }
        if running.is_refused:
            self._sealed = running.raw.get(b"data", b"")
            now_so[b"data"] = b""
        self.restore({**running.raw, **now_so})

    def to_dict(self, include_meta: bool = True, include_result: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """RQ's, and what a refused job calls stays packed: it may be a bomb, and does not run."""
        fields: dict[str, Any] = super().to_dict(include_meta, include_result)
        if "_sealed" in vars(self):
            fields["data"] = self._sealed
        return fields


class Running(Execution):
    """A job in work; passes for RQ's execution record of it."""

    def __init__(  # not the superclass's: it would read the clock twice
        self,
        *,
        queue_name: str,
        job_id: str,
        execution_id: str,
        raw: Mapping[bytes, bytes],
        started: float,
        worker_name: str,
        connection: Any,
        serializer: Serializer,
    ) -> None:
        """`started` is Redis' time of the claim in unix seconds, `raw` the job's hash just before."""
        self.id = execution_id
        self.job_id = job_id
        self.connection = connection
        self.worker_name = worker_name
        self.created_at = self.last_heartbeat = datetime.fromtimestamp(started, UTC)
        self._job = LazyJob(self)
        self.queue_name = queue_name
        self.raw = raw
        self.started = started
        self.serializer = serializer
        self.job_try = (self.whole(b"job_try") or 0) + 1
        self.call: Call | None = None
        # enqueued by arq's API, so that its rules apply; the unreadable is known by a field that RQ always writes
        self.is_arqs = b"success_callback_name" not in raw
        self.ctx: dict[str, Any] | None = None
        self.context = copy_context()  # of the task, and of the hook after it
        self.task: asyncio.Task[Any] | None = None
        self.after: asyncio.Task[None] | None = None  # arq's hook `after_job_end`
        self.has_slot = False
        self.is_settled = False
        self.is_stopped = False  # by RQ's command, whatever it makes of it
        self.is_aborted = False  # by arq's, unless it ends otherwise
        self.is_lost = False
        self.is_given_back = False
        self.is_killed = False
        self.is_refused = False  # nothing that it asks for is to happen
        self.is_beyond_rq = False  # RQ's code cannot settle it

    def cancel(self) -> None:
        """Cancel the task, if it has begun and not ended."""
        if self.task is not None:
            self.task.cancel()

    def forget_changes(self) -> None:
        """What the function has changed in its job cannot be written: it is as it was before."""
        self._job = LazyJob(self)

    def whole(self, name: bytes) -> int | None:
        """A number of the job's hash; None if it is not there, or is none: anybody may have written it."""
        try:
            return int(self.raw.get(name) or "")
        except ValueError:
            return None

    def ttl_of(self, name: str) -> float | None:
        """`result_ttl` or `failure_ttl` (s), which the function may have changed in its job."""
        job = self._job
        if isinstance(job, LazyJob) and job.is_read:
            changed = getattr(job, name)
            if changed is None or isinstance(changed, int | float):
                return changed
        return self.whole(name.encode())

    def needs_rq(self, ending: Ending) -> bool:
        """Whether the job uses what only RQ's own (blocking) code settles."""
        if isinstance(ending, GivenBack | AskedAgain) or self.is_beyond_rq:
            return False
        raw = self.raw
        if self.is_refused:
            return bool(raw.get(b"rate_limit_key"))
        if any(map(raw.get, _RQS_BUSINESS)):
            return True
        if isinstance(ending, Succeeded):
            return isinstance(ending.value, RQRetry)
        return isinstance(ending, Errored) and bool(self.whole(b"retries_left")) and not self.is_arqs
