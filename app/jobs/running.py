"""A job that runs, and how it ended."""

import asyncio
import traceback
from dataclasses import dataclass, field
from typing import Any

from rq import Retry as RQRetry
from rq.executions import Execution
from rq.job import Job as RQJob

from app.jobs.values import JobExecutionFailed, Retry


@dataclass(frozen=True, slots=True)
class Succeeded:
    """It returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Errored:
    """It raised."""

    error: BaseException

    @property
    def exc_string(self) -> str:
        """The traceback, as RQ stores it."""
        return "".join(traceback.format_exception(self.error))


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """It wants to run again after a delay."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """Somebody stopped it."""


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The worker shuts down; it runs again."""


Ending = Succeeded | Errored | AskedAgain | Stopped | GivenBack


@dataclass(slots=True)
class Running:
    """A job in work."""

    job: RQJob
    execution: Execution
    job_try: int
    task: "asyncio.Task[Any] | None" = None
    is_stopped: bool = False
    is_lost: bool = field(default=False)

    def cancel(self) -> None:
        """Cancel the task, if it has begun."""
        if self.task is not None:
            self.task.cancel()

    def ending(self, *, max_tries: int) -> Ending | None:
        """How the finished task ended; None if its records are somebody else's by now."""
        if self.task is None or self.is_lost:
            return None
        if self.is_stopped:
            return Stopped()
        if self.task.cancelled():
            return GivenBack()
        error = self.task.exception()
        if isinstance(error, Retry):
            if self.job_try >= max_tries:
                return Errored(JobExecutionFailed(f"max {max_tries} retries exceeded"))
            return AskedAgain(error.defer_seconds)
        return Succeeded(self.task.result()) if error is None else Errored(error)

    def needs_rq(self, ending: Ending) -> bool:
        """Whether the job uses what only RQ's own (blocking) code settles."""
        job = self.job
        if isinstance(ending, GivenBack | AskedAgain):
            return False
        return bool(
            job._success_callback_name  # noqa: SLF001 - the properties would import the callbacks
            or job._failure_callback_name  # noqa: SLF001 - likewise
            or job._stopped_callback_name  # noqa: SLF001 - likewise
            or job.webhooks
            or job.repeats_left
            or job.rate_limit_key
            or (job.retries_left and isinstance(ending, Errored))
            or (isinstance(ending, Succeeded) and isinstance(ending.value, RQRetry))
            or (isinstance(ending, Succeeded) and job.result_ttl == 0)
        )
