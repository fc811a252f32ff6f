"""What signals mean to a worker: RQ's rule."""

import time
from collections.abc import Callable

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
