"""Everything before the write: read, extract, chunk, embed, encode. No connection is held meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from app.credentials import credential_for
from app.db import Connection, connection
from app.embedding import EmbeddingModel
from app.errors import Broken, Transient, Unprocessable
from app.extraction import Chunking
from app.ingest.embedding import EmbeddingOrder, Vector, embed_texts
from app.records.files import blob_key
from app.records.ingestions import Claim, note_billed, note_progress
from app.records.store_files import list_targets
from app.resources import Resources
from app.ringing import ring_for_next
from app.vector.codec import EncodedChunks, encode_chunks, vector_bytes

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """A file ready to be written: its chunks, encoded once for each model that its stores use."""

    chunk_count: int
    encoded: Mapping[EmbeddingModel, EncodedChunks]


@asynccontextmanager
async def prepared(resources: Resources, held: Claim) -> AsyncIterator[PreparedFile]:
    """Extract, chunk and embed a claimed file, for as many models as its stores use: usually one.

    Write it inside the block: a large file has one of its process's places for such until the end of it.

    Raises:
        Unprocessable: the file or the key is at fault; known as early as possible, before anything is parsed
            or paid for.
        KeyBusy: the key is throttled; it has not been asked for anything.
        Transient: a part failed that may heal.
    """
    try:
        orders = await _orders(resources, held)
    except (Unprocessable, Broken):
        await ring_for_next(resources, held.user_id)  # its turn is over as well
        raise
    with ExitStack() as room:
        _take_room(resources, orders, room)
        await ring_for_next(resources, held.user_id)
        texts = await _extract(resources, held)
        size_bytes = len(texts) * sum(vector_bytes(order.model.dimensions) for order in orders)
        if size_bytes <= resources.settings.large_file_bytes:
            yield await _embed(resources, held, orders, texts)
            return
        room.close()  # who only waits must not keep it from others
        await _report(resources, held, len(texts), done=0)
        patience_seconds = resources.settings.job_timeout / 4
        async with resources.large_files.place(held.user_id, patience_seconds=patience_seconds):
            _take_room(resources, orders, room)
            yield await _embed(resources, held, orders, texts)


def _take_room(resources: Resources, orders: Sequence[EmbeddingOrder], room: ExitStack) -> None:
    for credential in {order.credential for order in orders}:
        room.enter_context(resources.embedder.room_for(credential))


async def _report(resources: Resources, held: Claim, total: int, done: int) -> None:
    try:
        async with connection(resources.pool) as conn:
            await note_progress(conn, held, stage="embedding", chunks_total=total, chunks_embedded=min(done, total))
    except Transient as exc:  # what is under way is paid for; it is for show
        logger.warning("progress not shown", ingestion=held.ingestion_id.hex, error=str(exc))


async def _embed(
    resources: Resources, held: Claim, orders: Sequence[EmbeddingOrder], texts: Sequence[str]
) -> PreparedFile:
    async def bill(conn: Connection, tokens: int) -> None:
        if tokens:
            await note_billed(conn, held, tokens)

    report = partial(_report, resources, held, len(texts))
    encoded = {}
    for order in orders:
        vectors = _handed_over(await embed_texts(resources, order, texts, report=report, bill=bill))
        encoded[order.model] = await asyncio.to_thread(encode_chunks, held.file_id, texts, vectors)
    return PreparedFile(len(texts), encoded)


def _handed_over(vectors: list[Vector]) -> Iterator[Vector]:
    """Each once, and then it is gone from the list: a large file's vectors and their rows would be too much."""
    vectors.reverse()
    while vectors:
        yield vectors.pop()


async def _orders(resources: Resources, held: Claim) -> list[EmbeddingOrder]:
    async with connection(resources.pool) as conn:
        targets = await list_targets(conn, held.ingestion_id)
        models = dict.fromkeys(EmbeddingModel(target.model, target.dimensions) for target in targets)
        return [
            EmbeddingOrder(
                held.user_id,
                model,
                await credential_for(conn, model, held.embedding_key_id, resources.settings),
            )
            for model in models
        ]


async def _extract(resources: Resources, held: Claim) -> Sequence[str]:
    async with connection(resources.pool) as conn:
        await note_progress(conn, held, stage="extracting")
    chunking = Chunking(held.max_chunk_size_tokens, held.chunk_overlap_tokens)
    async with resources.blobs.as_local_file(blob_key(held.file_id)) as path:
        document = await resources.extractor.extract(
            path, filename=held.filename, media_type=held.media_type, chunking=chunking
        )
    return [chunk.text for chunk in document.chunks]
