"""Places for files whose vectors take much memory: all that a worker has in hand must fit into it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID
from weakref import WeakValueDictionary

from app.errors import Transient

_PLACES = 4


class NoPlaceYet(Transient):
    """Other large files take this worker's memory; the file waits for them to finish."""

    costs_attempt = False


class LargeFiles:
    """The large files of one process: a few at once, and of each user one."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_PLACES)
        self._users: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def place(self, user_id: UUID, *, patience_seconds: float) -> AsyncIterator[None]:
        """A place while the block runs.

        Raises:
            NoPlaceYet: there was none for so long.
        """
        own = self._users.setdefault(user_id, asyncio.Lock())
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(patience_seconds):
                    await stack.enter_async_context(own)
                    await stack.enter_async_context(self._places)
            except TimeoutError as exc:
                raise NoPlaceYet from exc
            yield
