"""Waiting for an event, but not for ever, and for tasks to end."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

_ASK_AGAIN_SECONDS = 0.1


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
