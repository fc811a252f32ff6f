"""How many requests a key may have under way, and when it must pause."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

BACKOFF_BASE_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 8.0
THROTTLED_SECONDS = 30.0
"""How long after a complaint a key counts as throttled."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Monotonic time and the way to wait for it; tests bring their own."""

    now: Callable[[], float] = time.monotonic  # seconds
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep


def backoff_seconds(retries: int) -> float:
    """A random wait before the retry after `retries` others: "full jitter" of the AWS Architecture Blog (2015)."""
    ceiling = min(BACKOFF_MAX_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(retries, 16))
    return random.uniform(0, ceiling)  # noqa: S311  # spreads load, guards nothing


class KeyLimiter:
    """The requests of one embedding key: at most `concurrency` at once, fewer after the API complained.

    Additive increase, multiplicative decrease (Chiu and Jain, 1989): a complaint halves the window, at most once
    for the requests that were under way together; a full window of successes widens it by one.
    """

    def __init__(self, *, concurrency: int, clock: Clock) -> None:
        self._most = concurrency
        self._clock = clock
        self._window = float(concurrency)
        self._in_flight = 0
        self._parked_until = clock.now()
        self._narrowed_at = self._parked_until
        self._complained_at = -math.inf
        self._freed = asyncio.Event()

    @property
    def window(self) -> int:
        """How many requests may be under way at once now."""
        return int(self._window)

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this limiter would change nothing."""
        return not (self._in_flight or self.is_throttled or self._window < self._most)

    @property
    def is_throttled(self) -> bool:
        """Whether the key has to pause, or had to a moment ago."""
        return self.parked_seconds() > 0 or self._clock.now() < self._complained_at + THROTTLED_SECONDS

    def parked_seconds(self) -> float:
        """How long the key still has to pause."""
        return max(self._parked_until - self._clock.now(), 0.0)

    async def acquire(self, *, patience_seconds: float) -> float:
        """Take a slot and return 0; or, without one, the seconds for which the key is parked beyond patience.

        Whoever takes a slot must `release` it. A wait for a busy key has no limit; a wait for a parked one has.
        """
        deadline = self._clock.now() + patience_seconds
        while True:
            if self._parked_until > deadline:
                return self.parked_seconds()
            if wait := self.parked_seconds():
                await self._clock.sleep(wait)
            elif self._in_flight < self.window:
                self._in_flight += 1
                return 0.0
            else:
                self._freed.clear()
                await self._freed.wait()
                deadline = self._clock.now() + patience_seconds

    def release(self) -> None:
        """Give a slot back."""
        self._in_flight -= 1
        self._freed.set()

    def widen(self) -> None:
        """Note that a request succeeded."""
        self._window = min(float(self._most), self._window + 1 / self._window)
        self._freed.set()

    def park(self, seconds: float, *, started_at: float) -> None:
        """Let nothing out for `seconds`, because of a request that began at `started_at` on our clock."""
        self._complained_at = now = self._clock.now()
        self._parked_until = max(self._parked_until, now + seconds)
        if started_at >= self._narrowed_at:
            self._window = max(1.0, self._window / 2)
            self._narrowed_at = now
        self._freed.set()
