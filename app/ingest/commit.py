"""The single transaction that makes a file searchable in all its stores, or in none."""

from app.db import Connection
from app.embedding import EmbeddingModel
from app.ingest.prepare import PreparedFile
from app.records.ingestions import Claim, cancel, complete, lock_claim
from app.records.store_files import Placement, lock_targets, note_written
from app.vector.chunks import copy_chunks, delete_chunks


async def save_docs_to_multiple_collections(conn: Connection, held: Claim, prepared: PreparedFile) -> int | None:
    """Write a file's chunks into every store that still wants it, with status, counts and usage.

    Call it inside a transaction. The number of stores; None if the claim was lost or no store is left, and then
    nothing is written. Rivals: a sweep that took the lease back, a cancel, a detach, a deleted store; the row locks
    order us before or after each of them, and after means that there is nothing to write there.
    """
    if not await lock_claim(conn, held):
        return None
    targets = await lock_targets(conn, held.ingestion_id)
    if not targets:  # whoever takes the last one away cancels, too: a row that nobody wants must not stay
        await cancel(conn, held.ingestion_id)
        return None
    placed = [
        (target.shard, target.vector_store_id, prepared.encoded[EmbeddingModel(target.model, target.dimensions)])
        for target in targets
    ]
    await delete_chunks(conn, [Placement(target.shard, target.vector_store_id, held.file_id) for target in targets])
    await copy_chunks(conn, placed)
    await note_written(
        conn,
        held.ingestion_id,
        chunk_count=prepared.chunk_count,
        usage_bytes={store_id: chunks.size_bytes for _, store_id, chunks in placed},
    )
    await complete(conn, held, chunks=prepared.chunk_count)
    return len(targets)
