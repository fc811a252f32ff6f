"""Waiting for an event, but not for ever, and for tasks to end; the loop of those who wait in none."""

import asyncio
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import uvloop

_ASK_AGAIN_SECONDS = 0.1
_MAKES_LOOPS = sys.version_info < (3, 14)
"""Of Python's: its `get_event_loop` makes one, of the slower kind, where none is set."""


async def wait_at_most(event: asyncio.Event, seconds: float | None) -> None:
    """Until the event is set, or `seconds` (None: all of them) are over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def cancel_all(tasks: "Iterable[asyncio.Future[Any]]") -> None:
    """Cancel tasks until they have ended.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, by which redis-py waits for answers, loses a
    cancellation that comes in the same turn of the loop as the answer (https://github.com/python/cpython/issues/81839).
    """
    left = {each for each in tasks if not each.done()}
    while left:
        for each in left:
            each.cancel()
        _, left = await asyncio.wait(left, timeout=_ASK_AGAIN_SECONDS)


def lasting_loop() -> asyncio.AbstractEventLoop:
    """The event loop that is set in this thread; where there is none, one of uvloop's, which stays set."""
    loop = _loop_that_is_set()
    if loop is None or loop.is_closed():
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop


def _loop_that_is_set() -> asyncio.AbstractEventLoop | None:
    if _MAKES_LOOPS:
        found: asyncio.AbstractEventLoop | None = getattr(
            getattr(asyncio.get_event_loop_policy(), "_local", None), "_loop", None
        )
        return found
    try:
        return asyncio.get_event_loop()
    except RuntimeError:
        return None
