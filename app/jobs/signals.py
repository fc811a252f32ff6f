"""What signals mean to a worker: RQ's rule, and whose they are as long as arq's worker lives."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SAME_SIGNAL_SECONDS = 1.0
"""As RQ: a terminal and a parent process may both hand on the same Ctrl-C."""


class ShutdownSignals:
    """Call it at each signal: the first one is a warm shutdown, another one, a second later, a cold one."""

    def __init__(
        self, *, is_stopping: Callable[[], bool], warm: Callable[[], object], cold: Callable[[], object]
    ) -> None:
        self._is_stopping, self._warm, self._cold = is_stopping, warm, cold
        self._signalled_at = 0.0

    def __call__(self) -> None:
        """A signal has come."""
        here = time.monotonic()
        if not self._is_stopping():
            self._signalled_at = here
            self._warm()
        elif here - self._signalled_at > _SAME_SIGNAL_SECONDS:
            self._cold()


class HeldSignals:
    """SIGINT and SIGTERM call `handler`, if there is one, while anybody is in a `held` block, nested or not."""

    def __init__(self, handler: Callable[[signal.Signals], object] | None) -> None:
        self._handler = handler
        self._depth = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold them in the running loop."""
        if self._handler is None:
            yield
            return
        loop = asyncio.get_running_loop()
        if self._depth == 0:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._handler, number)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
