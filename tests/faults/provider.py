"""The embeddings API that the faults meet: in a thread of its own, and it keeps books."""

import asyncio
import hashlib
import threading
from types import TracebackType
from typing import Self

from tests.support.fake_openai import FakeOpenAI, Seen, tokens_of

LATENCY_SECONDS = 0.02


class Provider:
    """`api` is what to script; what was billed against what was needed once."""

    def __init__(self) -> None:
        self.api = FakeOpenAI(latency_seconds=LATENCY_SECONDS)
        self.needed_tokens = 0
        self._seen: set[bytes] = set()

    @property
    def billed_tokens(self) -> int:
        """Of all answers so far that a client could read."""
        return self.api.billed_tokens

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def balance(self) -> None:
        """Book the requests since the last time, and forget them."""
        requests, self.api.requests = self.api.requests, []
        for request in requests:
            for text in request.texts:
                digest = _digest(request, text)
                if digest not in self._seen:
                    self._seen.add(digest)
                    self.needed_tokens += tokens_of(text)

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        async with self.api:
            started.set()
            await self._ended.wait()


def _digest(request: Seen, text: str) -> bytes:
    return hashlib.sha256(f"{request.model} {request.dimensions} {text}".encode()).digest()
