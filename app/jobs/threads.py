"""Threads for what blocks: jobs' functions and RQ's own code.

Not asyncio's pool, where jobs wait for a thread while their time runs, behind RQ's code and it behind them. Here a
call has a thread at once; it is the callers that have slots. The threads are daemons: one that never returns keeps
no process from ending.
"""

import asyncio
import ctypes
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from app.jobs.waiting import wait_at_most

Value = TypeVar("Value")

logger = logging.getLogger("rq.worker")

_GRACE_SECONDS = 0.5


class Threads:
    """As many threads as there are calls at once, used again."""

    def __init__(self) -> None:
        self._idle: list[_Thread] = []
        self._is_closed = False
        self._whole: set[asyncio.Event] = set()  # the ends of calls that nobody interrupts

    async def run(self, function: Callable[[], Value]) -> Value:
        """Call a function; a cancellation waits for nothing, and the thread goes on by itself.

        Raises:
            whatever the function raises.
        """
        call = self._begin(function)
        self._whole.add(call.ended)
        await call.ended.wait()
        self._whole.discard(call.ended)
        return call.outcome()

    async def finish(self, seconds: float) -> None:
        """Wait for calls whose callers were cancelled, but not for ever."""
        until = time.monotonic() + seconds
        for ended in list(self._whole):
            await wait_at_most(ended, until - time.monotonic())

    async def run_job(
        self, function: Callable[[], Value], interruption: Callable[[], type[BaseException]]
    ) -> Value:
        """Call a function that a cancellation interrupts: `interruption()` is raised in it, between two bytecodes.

        If it then ends within half a second, that is how it ended; if not, its thread is left alone.

        Raises:
            CancelledError: it was interrupted, and did not end.
            whatever the function raises.
        """
        call = self._begin(function)
        try:
            await call.ended.wait()
        except asyncio.CancelledError:
            call.interrupt(interruption())
            await wait_at_most(call.ended, _GRACE_SECONDS)
            if not call.ended.is_set():
                logger.warning("a job's function does not end; its thread is left alone: %r", function)
                raise
        return call.outcome()

    def close(self) -> None:
        """End the threads, those at work once they are free."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().calls.put(None)

    def _begin(self, function: Callable[[], Value]) -> "_Call[Value]":
        call = _Call(partial(copy_context().run, function))
        if self._idle:
            thread = self._idle.pop()
        else:
            thread = _Thread(self._put_back)
            thread.start()
        thread.calls.put(call)
        return call

    def _put_back(self, thread: "_Thread") -> bool:
        """From a thread that is free; whether it is still wanted."""
        self._idle.append(thread)
        return not self._is_closed


class _Thread(threading.Thread):
    def __init__(self, put_back: "Callable[[_Thread], bool]") -> None:
        super().__init__(name="jobs of app.jobs", daemon=True)
        self.calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._put_back = put_back

    def run(self) -> None:
        while (call := self.calls.get()) is not None:
            call.run()
            is_wanted = self._put_back(self)  # before anybody is told, who may have the next call
            call.tell()
            if not is_wanted:
                return
            del call


class _Call(Generic[Value]):
    """One call; belongs to the loop that makes it."""

    def __init__(self, function: Callable[[], Value]) -> None:
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._function = function
        self._value: Value | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._thread_id: int | None = None  # while it may be interrupted
        self._interruption: type[BaseException] | None = None

    def run(self) -> None:
        """In its thread."""
        try:
            try:
                with self._lock:
                    if self._interruption is not None:
                        raise self._interruption
                    self._thread_id = threading.get_ident()
                self._value = self._function()
            finally:
                self._close_to_interruptions()
        except BaseException as exc:  # noqa: BLE001 - it is raised where the outcome is asked for
            self._error = exc

    def _close_to_interruptions(self) -> None:
        """What is raised later would hit whoever has the thread then. There is one interruption at most."""
        with self._lock:
            self._thread_id = None
        _raise_in_thread(threading.get_ident(), None)  # one that was set, and has not been raised yet

    def tell(self) -> None:
        """In its thread: the outcome is there."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.ended.set)

    def interrupt(self, kind: type[BaseException]) -> None:
        """Have an exception raised in the function, unless it has ended."""
        with self._lock:
            if self._interruption is None:
                self._interruption = kind
                if self._thread_id is not None:
                    _raise_in_thread(self._thread_id, kind)

    def outcome(self) -> Value:
        """What the function returned.

        Raises:
            what it raised.
        """
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback leads here
        return self._value  # type: ignore[return-value]  # it has ended


def _raise_in_thread(thread_id: int, kind: type[BaseException] | None) -> None:
    """As `rq.timeouts.TimerDeathPenalty`; None takes back what is not raised yet."""
    error = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), error)
