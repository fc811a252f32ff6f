"""Vectors for a file's chunks: what was paid for before is reused, each distinct text is embedded once."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID

import anyio
import numpy as np
import structlog
from numpy.typing import NDArray

from app.db import Connection, connection, transaction
from app.embedding import EmbeddingCredential, EmbeddingModel
from app.errors import Transient
from app.records.embedded_texts import find_embedded, keep_embedded
from app.resources import Resources

Vector = NDArray[np.float16]
ReportProgress = Callable[[int], Awaitable[None]]
"""Called with how many texts are done so far."""
Bill = Callable[[Connection, int], Awaitable[None]]
"""Called with the tokens that were billed, in the transaction that keeps what they were billed for."""

_HALF = "<f2"  # as they are kept, whatever the machine's byte order
_FOUND_AT_ONCE = 5000
_KEEP_AGAIN_SECONDS = 0.5

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EmbeddingOrder:
    """Which model embeds, who owns the result, who pays; `credential` None is the local model."""

    owner_id: UUID
    model: EmbeddingModel
    credential: EmbeddingCredential | None


async def embed_texts(
    resources: Resources, order: EmbeddingOrder, texts: Sequence[str], *, report: ReportProgress, bill: Bill
) -> list[Vector]:
    """The vectors of `texts`, in order; each distinct text's is one array.

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
    return [known[digest] for digest in digests]


async def _find_known(resources: Resources, order: EmbeddingOrder, digests: Sequence[bytes]) -> dict[bytes, Vector]:
    known: dict[bytes, Vector] = {}
    if order.model.is_local:  # costs nothing to do again
        return known
    for start in range(0, len(digests), _FOUND_AT_ONCE):
        async with connection(resources.pool) as conn:
            kept = await find_embedded(
                conn,
                owner_id=order.owner_id,
                model=order.model.name,
                dimensions=order.model.dimensions,
                digests=digests[start : start + _FOUND_AT_ONCE],
            )
        known |= {digest: np.frombuffer(raw, dtype=_HALF) for digest, raw in kept.items()}
    return known


async def _keep(
    resources: Resources, order: EmbeddingOrder, fresh: dict[bytes, Vector], *, bill: Bill, billed_tokens: int
) -> None:
    """Keep vectors for a retry, and note what they cost with them: what is kept is never paid for again.

    While Postgres is away this waits for it, as long as the attempt may take: what is under way would be paid for
    and lost. A COMMIT that was cut off may have taken effect, and then nothing is billed twice.
    """
    embeddings = {digest: vector.astype(_HALF, copy=False).tobytes() for digest, vector in fresh.items()}
    is_repeated = False
    while True:
        try:
            async with transaction(resources.pool) as conn:
                is_new = await keep_embedded(
                    conn,
                    owner_id=order.owner_id,
                    model=order.model.name,
                    dimensions=order.model.dimensions,
                    embeddings=embeddings,
                )
                if is_new or not is_repeated:
                    await bill(conn, billed_tokens)  # last: no beat extends a lease whose row is locked
        except Transient as exc:
            logger.warning("vectors not kept yet", vectors=len(fresh), error=str(exc))
            is_repeated = True
            await anyio.sleep(_KEEP_AGAIN_SECONDS)
        else:
            return
