"""The embeddings API that the faults meet: in a thread of its own, and it keeps books."""

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.support.fake_openai import Behaviour, FakeOpenAI, Seen, tokens_of

LATENCY_SECONDS = 0.02
_LONG_CHARACTERS = 50


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
        """Book the requests since the last time, and forget them and what is left of the script."""
        self.api.unscript()
        requests, self.api.requests = self.api.requests, []
        for request in requests:
            for text in request.texts:
                digest = _digest(request, text)
                if digest not in self._seen:
                    self._seen.add(digest)
                    self.needed_tokens += tokens_of(text)

    def has_met(self, behaviour: Behaviour) -> bool:
        """Whether a request has met this scripted behaviour; if not, none will."""
        left = self.api.unscript()
        return behaviour not in left

    def paid_by_others(self, key: str, texts: Sequence[str]) -> list[str]:
        """Which pieces of these texts came with another key than this, since the last balance.

        Short ones may be of other texts too.
        """
        return [
            piece
            for request in list(self.api.requests)
            if request.authorization != f"Bearer {key}"
            for piece in request.texts
            if len(piece) >= _LONG_CHARACTERS and any(piece in text for text in texts)
        ]

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        async with self.api:
            started.set()
            await self._ended.wait()


def _digest(request: Seen, text: str) -> bytes:
    return hashlib.sha256(f"{request.model} {request.dimensions} {text}".encode()).digest()
