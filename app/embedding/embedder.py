from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from types import TracebackType
from typing import Self

import numpy as np

from app.embedding.dispatch import Dispatcher
from app.embedding.limiter import Clock
from app.embedding.local import LocalEmbeddings
from app.embedding.openai_api import OpenAIEmbeddings
from app.embedding.packing import Call, estimated_tokens
from app.embedding.room import Room
from app.embedding.values import Answered, Embedded, EmbeddingCredential, EmbeddingModel, to_halves
from app.errors import Unprocessable
from app.settings import LOCAL_DIMENSIONS

PATIENCE_SECONDS = 60.0
THROTTLE_PATIENCE_SECONDS = 10.0
"""Shorter: whoever waits for a key that is limited holds a slot that others could use."""
LOCAL_THREADS = 2
LOCAL_TEXTS = 2048  # at once, so that a book shows progress


class Embedder:
    """Turns texts into vectors; one per process and event loop, opened with `async with`."""

    def __init__(
        self,
        *,
        batch_size: int,
        concurrency: int,
        timeout_seconds: float,
        patience_seconds: float = PATIENCE_SECONDS,
        throttle_patience_seconds: float = THROTTLE_PATIENCE_SECONDS,
        slots: int = 1,
        local_threads: int = LOCAL_THREADS,
        clock: Clock | None = None,
    ) -> None:
        """Set the limits of what `embed` may do.

        Args:
            batch_size: most texts in one request.
            concurrency: most requests under way at once for one key.
            timeout_seconds: how long one request may take.
            patience_seconds: how long after its first try a request is made again; beyond it, `Transient`.
            throttle_patience_seconds: the same where the API limits the rate, and how long a pause that it asked
                for is waited out; beyond it, `RateLimited`.
            slots: how many files this process works on at once, see `room_for`.
            local_threads: threads of the built-in model.
            clock: time, for tests.
        """
        self._api = OpenAIEmbeddings(timeout_seconds=timeout_seconds)
        self._local = LocalEmbeddings(threads=local_threads)
        self._dispatcher = Dispatcher(
            self._api,
            batch_size=batch_size,
            concurrency=concurrency,
            patience_seconds=patience_seconds,
            throttle_patience_seconds=min(patience_seconds, throttle_patience_seconds),
            clock=clock or Clock(),
        )
        self._room = Room(slots=slots, limiter_of=self._dispatcher.limiter_of)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._dispatcher.aclose()
        await self._api.aclose()
        await self._local.aclose()

    def room_for(self, credential: EmbeddingCredential | None) -> AbstractContextManager[None]:
        """Room for one file that this key pays for, while the block runs; without a key there is always room.

        Raises:
            KeyBusy: the key is to pause, or its rate is limited and it has its share of the slots.
        """
        return nullcontext() if credential is None else self._room.take(credential)

    async def embed(
        self, texts: Sequence[str], *, model: EmbeddingModel, credential: EmbeddingCredential | None
    ) -> Embedded:
        """The vectors of `texts`, shape (texts, model.dimensions), in their order, and what they cost.

        Raises:
            as `embed_as_answered`.
        """
        vectors = np.empty((len(texts), model.dimensions), dtype=np.float16)
        billed_tokens = 0
        async for answered in self.embed_as_answered(texts, model=model, credential=credential):
            vectors[answered.rows] = answered.vectors
            billed_tokens += answered.billed_tokens
        return Embedded(vectors, billed_tokens)

    async def embed_as_answered(
        self, texts: Sequence[str], *, model: EmbeddingModel, credential: EmbeddingCredential | None
    ) -> AsyncGenerator[Answered]:
        """The vectors of `texts` as they arrive, each text's once; an error comes after all that was paid for.

        Calls that wait at the same time with one credential and model share requests. A cancelled call's texts that
        have not left stay here. The built-in model needs no credential.

        Raises:
            Unprocessable: `no_embedding_key`; `key_rejected` (also when its account is out of quota);
                `embedding_refused` for texts or a model that the API does not take; `dimension_mismatch`.
            Transient: the API limits the rate, fails or talks nonsense, for longer than we are patient.
        """
        if not texts:
            return
        answers = (
            self._local_answers(texts, model) if model.is_local else self._api_answers(texts, model, credential)
        )
        async with aclosing(answers):
            async for answered in answers:
                yield answered

    def _api_answers(
        self, texts: Sequence[str], model: EmbeddingModel, credential: EmbeddingCredential | None
    ) -> AsyncGenerator[Answered]:
        if credential is None:
            raise Unprocessable(
                "no_embedding_key",
                f"No embedding key is set for {model.name}; add one, or ask who runs this server.",
            )
        call = Call(texts)
        self._dispatcher.submit(call, model=model, credential=credential)
        return call.answers()

    async def _local_answers(self, texts: Sequence[str], model: EmbeddingModel) -> AsyncGenerator[Answered]:
        if model.dimensions != LOCAL_DIMENSIONS:
            raise Unprocessable(
                "dimension_mismatch",
                f"{model.name} answers vectors of {LOCAL_DIMENSIONS} dimensions where {model.dimensions} "
                "are expected; use a vector store with the model's own dimensions, or another model.",
            )
        estimated_tokens(texts)  # refuses what no embedder takes
        for start in range(0, len(texts), LOCAL_TEXTS):
            part = texts[start : start + LOCAL_TEXTS]
            yield Answered(
                range(start, start + len(part)), to_halves(await self._local.embed(part)), billed_tokens=0
            )
