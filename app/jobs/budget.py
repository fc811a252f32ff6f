"""What a caller may lose when Redis is away: a limit for each answer, and a circuit breaker."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from redis import asyncio as aioredis
from redis.exceptions import DataError, RedisError, ResponseError

_AWAY = re.compile("(^|-)(OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|LOADING|BUSY|NOPERM|NOAUTH) ")
"""Answers of a Redis that lives but takes no jobs; those of a script stand behind a dash in its own error."""


class QueueUnavailable(RedisError):
    """Redis does not take or answer for jobs now; the message says which one, why, and what to check."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a caller waits, in seconds; `RedisSettings.conn_timeout` is the limit for connecting."""

    answer_seconds: float = 0.25
    per_job_seconds: float = 0.002
    """Added for each job of a call, for those that enqueue thousands."""
    break_seconds: float = 2.0
    """After a failure nobody asks Redis for so long: each call fails at once."""


class CircuitBreaker:
    """Keeps a `Budget`. After a failure the circuit is open for `break_seconds`; then one call tries for all."""

    def __init__(self, budget: Budget, place: str) -> None:
        self._budget = budget
        self._place = place
        self._open_until: float | None = None
        self._reason = ""
        self._is_trying = False

    @property
    def is_open(self) -> bool:
        """Whether a call would fail without asking Redis."""
        return self._open_until is not None and (self._is_trying or time.monotonic() < self._open_until)

    @asynccontextmanager
    async def guard(self, jobs: int = 0) -> AsyncIterator[None]:
        """Run a block that asks Redis, for `jobs` jobs, within the budget.

        Raises:
            QueueUnavailable: no answer in time, none at all, or Redis takes no writes; or the circuit is open.
        """
        if self.is_open:
            left = max(0.0, (self._open_until or 0.0) - time.monotonic())
            raise QueueUnavailable(f"{self._reason}; not asked again for {left:.1f} s")
        self._is_trying = self._open_until is not None
        seconds = self._budget.answer_seconds + jobs * self._budget.per_job_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except (RedisError, OSError, TimeoutError) as exc:
            if not is_away(exc):
                self._open_until = None
                raise
            self._open(exc, seconds)
            raise QueueUnavailable(self._reason) from exc
        else:
            self._open_until = None
        finally:
            self._is_trying = False

    def _open(self, exc: Exception, seconds: float) -> None:
        self._open_until = time.monotonic() + self._budget.break_seconds
        kind = type(exc).__name__
        why = f"did not answer within {seconds:g} s" if isinstance(exc, TimeoutError) else f"failed: {kind}: {exc}"
        self._reason = f"Redis at {self._place} {why}; check that it runs there and takes writes"


def within_budget(redis: aioredis.Redis) -> AbstractAsyncContextManager[Any]:
    """Keeps the budget of an `ArqRedis` for a block that asks Redis; a plain client has none.

    Raises:
        QueueUnavailable: Redis does not answer in time, or did not a moment ago.
    """
    guard = getattr(redis, "within_budget", nullcontext)
    block: AbstractAsyncContextManager[Any] = guard()
    return block


def is_away(exc: Exception) -> bool:
    """Whether Redis may take the same command later; other errors would come again."""
    if isinstance(exc, ResponseError):
        text = str(exc) if exc.status_code is None else f"{exc.status_code} {exc}"
        return _AWAY.search(text) is not None
    return not isinstance(exc, DataError)
