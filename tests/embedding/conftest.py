import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr

from app.embedding import Embedder, EmbeddingCredential, EmbeddingModel
from app.embedding.limiter import Clock
from tests.support.fake_openai import FakeOpenAI, vector_of

MODEL = EmbeddingModel("text-embedding-3-small", 8)


@dataclass
class Skipping:
    """A clock on which every sleep ends at once, and has passed."""

    time: float = 1000.0
    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, sleep=self.sleep)


@dataclass
class Stopped:
    """A clock that stands until the test moves it."""

    time: float = 1000.0
    sleepers: list[tuple[float, asyncio.Event]] = field(default_factory=list)
    fell_asleep: asyncio.Event = field(default_factory=asyncio.Event)

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self.sleepers.append((self.time + seconds, woken))
        self.fell_asleep.set()
        await woken.wait()

    def advance(self, seconds: float) -> None:
        self.time += seconds
        for until, woken in self.sleepers:
            if until <= self.time:
                woken.set()

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, sleep=self.sleep)


TEST_SECRET = "sk-test"


def credential(api: FakeOpenAI, *, secret: str = TEST_SECRET, key_id: str = "server") -> EmbeddingCredential:
    return EmbeddingCredential(key_id, api.base_url, SecretStr(secret))


def expected(*texts: str) -> NDArray[np.float16]:
    """What the fake API answers for these texts to MODEL."""
    return np.stack([vector_of(text, MODEL.dimensions) for text in texts]).astype(np.float16)


@pytest.fixture
async def api() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI() as server:
        yield server


@pytest.fixture
def skipping() -> Skipping:
    return Skipping()


@pytest.fixture
def stopped() -> Stopped:
    return Stopped()


@pytest.fixture
def open_embedder(skipping: Skipping) -> Callable[..., AbstractAsyncContextManager[Embedder]]:
    """An Embedder on a skipping clock; anything may be set otherwise."""
    return partial(
        Embedder,
        batch_size=4,
        concurrency=2,
        timeout_seconds=5,
        throttle_patience_seconds=60,
        clock=skipping.clock,
    )


@pytest.fixture
async def embedder(open_embedder) -> AsyncIterator[Embedder]:
    async with open_embedder() as opened:
        yield opened
