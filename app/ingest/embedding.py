"""Vectors for a file's chunks: what was paid for before is reused, each distinct text is embedded once."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app.db import Connection, connection, transaction
from app.embedding import EmbeddingCredential, EmbeddingModel
from app.records.embedded_texts import find_embedded, keep_embedded
from app.resources import Resources

Vectors = NDArray[np.float32]
ReportProgress = Callable[[int], Awaitable[None]]
"""Called with how many texts are done so far."""
Bill = Callable[[Connection, int], Awaitable[None]]
"""Called with the tokens that were billed, in the transaction that keeps what they were billed for."""


@dataclass(frozen=True, slots=True)
class EmbeddingOrder:
    """Which model embeds, who owns the result, who pays; `credential` None is the local model."""

    owner_id: UUID
    model: EmbeddingModel
    credential: EmbeddingCredential | None


async def embed_texts(
    resources: Resources, order: EmbeddingOrder, texts: Sequence[str], *, report: ReportProgress, bill: Bill
) -> Vectors:
    """The vectors (len(texts), dimensions) of `texts`, in order.

    Raises:
        Unprocessable, Transient: as `Embedder.embed_as_answered`; what was embedded until then is kept and billed.
    """
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    distinct = dict(zip(digests, texts, strict=True))
    known = await _find_known(resources, order, list(distinct))
    missing = [digest for digest in distinct if digest not in known]
    answers = resources.embedder.embed_as_answered(
        [distinct[digest] for digest in missing], model=order.model, credential=order.credential
    )
    async with aclosing(answers):
        async for answered in answers:
            fresh = dict(zip((missing[row] for row in answered.rows), answered.vectors, strict=True))
            known |= fresh
            if not order.model.is_local:
                await _keep(resources, order, fresh, bill=bill, billed_tokens=answered.billed_tokens)
            await report(len(known))
    return np.stack([known[digest] for digest in digests])


async def _find_known(
    resources: Resources, order: EmbeddingOrder, digests: Sequence[bytes]
) -> dict[bytes, Vectors]:
    if order.model.is_local:  # costs nothing to do again
        return {}
    async with connection(resources.pool) as conn:
        kept = await find_embedded(
            conn,
            owner_id=order.owner_id,
            model=order.model.name,
            dimensions=order.model.dimensions,
            digests=digests,
        )
    return {digest: np.frombuffer(raw, dtype="<f2").astype(np.float32) for digest, raw in kept.items()}


async def _keep(
    resources: Resources,
    order: EmbeddingOrder,
    fresh: dict[bytes, Vectors],
    *,
    bill: Bill,
    billed_tokens: int,
) -> None:
    """Keep vectors for a retry, and note what they cost with them: what is kept is never paid for again."""
    with np.errstate(over="ignore"):  # the codec refuses what does not fit, with a reason
        halves = {digest: vector.astype("<f2").tobytes() for digest, vector in fresh.items()}
    async with transaction(resources.pool) as conn:
        await keep_embedded(
            conn,
            owner_id=order.owner_id,
            model=order.model.name,
            dimensions=order.model.dimensions,
            embeddings=halves,
        )
        await bill(conn, billed_tokens)  # last: no beat extends a lease whose row is locked
