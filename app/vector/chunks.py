"""Writing and deleting chunk rows. Callers own the transaction and hold the locks of the files concerned."""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from app.db import LONG_STATEMENT_SECONDS, Connection
from app.vector.codec import COLUMNS, EncodedChunks, copy_pieces


class ChunkPlace(Protocol):
    """Where a file's chunks lie."""

    @property
    def shard(self) -> int: ...  # noqa: D102 - see the class
    @property
    def vector_store_id(self) -> UUID: ...  # noqa: D102
    @property
    def file_id(self) -> UUID: ...  # noqa: D102


async def copy_chunks(conn: Connection, placed: Sequence[tuple[int, UUID, EncodedChunks]]) -> None:
    """Write (shard, vector store id, chunks) triples with one COPY.

    Raises:
        asyncpg.PostgresError: a row is refused; the transaction is then lost as a whole, which is the point.
    """
    await conn.copy_to_table("chunks", source=copy_pieces(placed), columns=COLUMNS, format="binary")


async def delete_chunks(conn: Connection, places: Sequence[ChunkPlace]) -> None:
    """Delete the chunks of these files in these stores."""
    if not places:
        return
    await conn.execute(
        """
        DELETE FROM chunks USING unnest($1::int[], $2::uuid[], $3::uuid[]) AS p (shard, store_id, file_id)
        WHERE chunks.shard = p.shard AND vector_store_id = p.store_id AND chunks.file_id = p.file_id
        """,
        [place.shard for place in places],
        [place.vector_store_id for place in places],
        [place.file_id for place in places],
    )


async def delete_store_chunks(conn: Connection, *, shard: int, store_id: UUID) -> None:
    """Delete all chunks of a store."""
    await conn.execute(
        "DELETE FROM chunks WHERE shard = $1 AND vector_store_id = $2",
        shard,
        store_id,
        timeout=LONG_STATEMENT_SECONDS,
    )


async def read_texts(conn: Connection, *, shard: int, store_id: UUID, file_id: UUID) -> list[str]:
    """A file's chunk texts in order."""
    rows = await conn.fetch(
        """
        SELECT content FROM chunks WHERE shard = $1 AND vector_store_id = $2 AND file_id = $3 ORDER BY ordinal
        """,
        shard,
        store_id,
        file_id,
    )
    return [row["content"] for row in rows]
