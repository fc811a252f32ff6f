"""Concurrent calls in shared round trips: what is asked for in one turn of the event loop is sent together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Send = Callable[[Sequence[Request]], Awaitable[Sequence[Answer | Exception]]]


class _Batch(Generic[Request, Answer]):
    """Calls that wait for one sending."""

    def __init__(self) -> None:
        self._calls: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._sending: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._calls)

    async def join(self, request: Request) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls.append((request, future))
        try:
            return await future
        finally:
            if self._sending is not None and all(each.cancelled() for _, each in self._calls):
                self._sending.cancel()  # nobody waits for it any more

    def start(self, send: Send[Request, Answer], tasks: set[asyncio.Task[None]]) -> None:
        self._sending = asyncio.create_task(self._run(send))
        tasks.add(self._sending)  # the loop itself keeps no task alive
        self._sending.add_done_callback(tasks.discard)

    async def _run(self, send: Send[Request, Answer]) -> None:
        waiting = [(request, future) for request, future in self._calls if not future.done()]
        answers: Sequence[Answer | Exception]
        try:
            answers = await send([request for request, _ in waiting]) if waiting else []
        except Exception as exc:  # noqa: BLE001 - it goes to every caller, none is left waiting
            answers = [exc] * len(waiting)
        except BaseException:
            for _, future in waiting:
                future.cancel()
            raise
        for (_, future), answer in zip(waiting, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


class Coalescer(Generic[Request, Answer]):
    """Sends requests in batches; `send` answers each one, with an exception where only that one failed."""

    def __init__(self, send: Send[Request, Answer]) -> None:
        self._send = send
        self._gathering: _Batch[Request, Answer] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, request: Request) -> Answer:
        """This request's answer. Alone it is sent as it is; a cancelled call takes none of the others with it.

        Raises:
            whatever `send` raised, or answered for this request.
        """
        if self._gathering is not None:
            return await self._gathering.join(request)
        batch = self._gathering = _Batch()
        try:
            await asyncio.sleep(0)  # calls that are ready to run in this turn of the loop join meanwhile
        except asyncio.CancelledError:
            if batch:
                batch.start(self._send, self._tasks)
            raise
        finally:
            self._gathering = None
        if batch:
            batch.start(self._send, self._tasks)
            return await batch.join(request)
        answer = (await self._send([request]))[0]
        if isinstance(answer, Exception):
            raise answer
        return answer
