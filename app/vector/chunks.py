"""Writing and deleting chunk rows. Callers own the transaction and hold the locks of the files concerned."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
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


@dataclass(frozen=True, slots=True)
class WaitingCopy:
    """A COPY of chunks that waits for its client; equal to an earlier one if no byte has come meanwhile."""

    pid: int
    started_at: datetime
    received_bytes: int


async def copy_chunks(conn: Connection, placed: Sequence[tuple[int, UUID, EncodedChunks]]) -> None:
    """Write (shard, vector store id, chunks) triples with one COPY.

    Raises:
        asyncpg.PostgresError: a row is refused; the transaction is then lost as a whole, which is the point.
    """
    await conn.copy_to_table("chunks", source=copy_pieces(placed), columns=COLUMNS, format="binary")


async def waiting_copies(conn: Connection) -> list[WaitingCopy]:
    """The COPYs of all Sluice's processes that wait for more to come."""
    rows = await conn.fetch(
        """
        SELECT pid, a.query_start AS started_at, p.bytes_processed AS received_bytes
        FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid)
        WHERE p.datname = current_database()
          AND p.relid = 'chunks'::regclass AND a.application_name LIKE 'sluice-%' AND a.wait_event = 'ClientRead'
        """
    )
    return [WaitingCopy(**dict(row)) for row in rows]


async def end_copies(conn: Connection, copies: Sequence[WaitingCopy]) -> None:
    """End the connections of these; their transactions are rolled back."""
    await conn.execute(
        """
        SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
        JOIN unnest($1::int[], $2::timestamptz[]) AS c (pid, started_at)
          ON a.pid = c.pid AND a.query_start = c.started_at
        """,
        [copy.pid for copy in copies],
        [copy.started_at for copy in copies],
    )


async def delete_chunks(conn: Connection, places: Sequence[ChunkPlace]) -> None:
    """Delete the chunks of these files in these stores, one statement a shard: it names its one partition."""
    for shard in sorted({place.shard for place in places}):
        here = [place for place in places if place.shard == shard]
        await conn.execute(
            """
            DELETE FROM chunks USING unnest($2::uuid[], $3::uuid[]) AS p (store_id, file_id)
            WHERE shard = $1 AND vector_store_id = p.store_id AND chunks.file_id = p.file_id
            """,
            shard,
            [place.vector_store_id for place in here],
            [place.file_id for place in here],
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
