"""Files in vector stores: attaching, detaching, listing.

Order of locks, everywhere: stores, files, ingestions, vector_store_files, chunks; so there is no deadlock with the
transaction that commits a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from app.db import LONG_STATEMENT_SECONDS, Connection
from app.errors import NotFound
from app.ids import to_wire
from app.records.ingestions import CANCEL, NewIngestion
from app.records.pages import Page, PageRequest, make_page, page_clause

STATUS_STATES = {
    "in_progress": ("queued", "running"),
    "completed": ("completed",),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
}
"""The states behind each status that clients see."""
STATE_STATUS = {state: status for status, states in STATUS_STATES.items() for state in states}
"""The status of each state."""

_SELECT = """
    SELECT v.vector_store_id, v.file_id, v.ingestion_id, i.batch_id, i.state, i.error_code, i.error_message,
           v.attributes, i.max_chunk_size_tokens, i.chunk_overlap_tokens, v.chunk_count, v.usage_bytes, v.created_at
    FROM vector_store_files v JOIN ingestions i ON i.id = v.ingestion_id
"""


@dataclass(frozen=True, slots=True)
class StoreFile:
    """A file in a vector store; its state is its newest ingestion's."""

    vector_store_id: UUID
    file_id: UUID
    ingestion_id: UUID
    batch_id: UUID | None
    state: str
    error_code: str | None
    error_message: str | None
    attributes: dict[str, str | float | bool]
    max_chunk_size_tokens: int
    chunk_overlap_tokens: int
    chunk_count: int
    usage_bytes: int
    created_at: datetime

    @property
    def status(self) -> str:
        """The status that clients see."""
        return STATE_STATUS[self.state]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a file's chunks lie: the shard, the store, the file."""

    shard: int
    vector_store_id: UUID
    file_id: UUID


@dataclass(frozen=True, slots=True)
class Target:
    """A store that an ingestion must reach, and what vectors it holds."""

    vector_store_id: UUID
    shard: int
    model: str
    dimensions: int


async def attach(conn: Connection, news: Sequence[NewIngestion], store_ids: Sequence[UUID]) -> list[Placement]:
    """Point each store's entry for each file at its new ingestion; where old chunks lie, to be deleted.

    A file that is attached again is not searchable until the new ingestion completes; an older ingestion
    left without any store is cancelled.
    """
    old_ids = await _lock_ingestions(
        conn,
        "v.vector_store_id = ANY($1) AND v.file_id = ANY($2)",
        list(store_ids),
        [new.file_id for new in news],
    )
    replaced: list[Placement] = []
    if old_ids:
        replaced = await _placements(
            conn,
            "v.vector_store_id = ANY($1) AND v.file_id = ANY($2) AND v.chunk_count > 0",
            list(store_ids),
            [new.file_id for new in news],
        )
    await conn.execute(
        """
        INSERT INTO vector_store_files (vector_store_id, file_id, ingestion_id, attributes)
        SELECT s.id, n.file_id, n.ingestion_id, n.attributes
        FROM unnest($1::uuid[], $2::uuid[], $3::jsonb[]) AS n (file_id, ingestion_id, attributes)
        CROSS JOIN unnest($4::uuid[]) AS s (id) ORDER BY s.id, n.file_id
        ON CONFLICT (vector_store_id, file_id) DO UPDATE SET
            ingestion_id = excluded.ingestion_id, attributes = excluded.attributes,
            chunk_count = 0, usage_bytes = 0
        """,
        [new.file_id for new in news],
        [new.id for new in news],
        [new.attributes for new in news],
        list(store_ids),
    )
    await _cancel_without_store(conn, old_ids)
    return replaced


async def detach(conn: Connection, *, store_id: UUID, file_id: UUID) -> list[Placement]:
    """Take a file out of a store; where its chunks lie, to be deleted in the same transaction.

    Raises:
        NotFound: the file is not in the store.
    """
    # an attachment of the same file at the same time comes before this, or after it
    await conn.execute("SELECT FROM files WHERE id = $1 FOR NO KEY UPDATE", file_id)
    placements = await _detach(conn, "v.vector_store_id = $1 AND v.file_id = $2", store_id, file_id)
    if not placements:
        raise _not_in_store(store_id, file_id)
    return placements


async def detach_everywhere(conn: Connection, file_id: UUID) -> list[Placement]:
    """Take a file out of all stores."""
    return await _detach(conn, "v.file_id = $1", file_id)


async def detach_unsettled(conn: Connection, store_id: UUID) -> None:
    """Take the files that are on their way out of a store: they have no chunks there.

    Whoever deletes a large store does this first, in a transaction of its own: the long one that follows then holds
    no row that a worker has to write to.
    """
    condition = """
        v.vector_store_id = $1 AND EXISTS (
            SELECT FROM ingestions i WHERE i.id = v.ingestion_id AND i.state IN ('queued', 'running'))
    """
    ingestion_ids = await _lock_ingestions(conn, condition, store_id)
    await conn.execute(
        f"DELETE FROM vector_store_files v WHERE {condition} AND v.ingestion_id = ANY($2)", store_id, ingestion_ids
    )
    await _cancel_without_store(conn, ingestion_ids)


async def detach_all(conn: Connection, store_id: UUID) -> None:
    """Empty a store; its chunks are the caller's to delete."""
    ingestion_ids = await _lock_ingestions(conn, "v.vector_store_id = $1", store_id)
    await conn.execute(
        "DELETE FROM vector_store_files WHERE vector_store_id = $1", store_id, timeout=LONG_STATEMENT_SECONDS
    )
    await _cancel_without_store(conn, ingestion_ids)


async def lock_targets(conn: Connection, ingestion_id: UUID) -> list[Target]:
    """The stores an ingestion must reach, their entries locked until the end of the transaction."""
    return await _targets(conn, ingestion_id, "FOR UPDATE OF v")


async def list_targets(conn: Connection, ingestion_id: UUID) -> list[Target]:
    """The stores an ingestion must reach, as of now."""
    return await _targets(conn, ingestion_id, "")


async def note_written(
    conn: Connection, ingestion_id: UUID, *, chunk_count: int, usage_bytes: dict[UUID, int]
) -> None:
    """Record in each store's entry what was just written there."""
    await conn.execute(
        """
        UPDATE vector_store_files v SET chunk_count = $2, usage_bytes = u.bytes
        FROM unnest($3::uuid[], $4::bigint[]) AS u (store_id, bytes)
        WHERE v.ingestion_id = $1 AND v.vector_store_id = u.store_id
        """,
        ingestion_id,
        chunk_count,
        list(usage_bytes),
        list(usage_bytes.values()),
    )


async def get_store_file(conn: Connection, *, store_id: UUID, file_id: UUID) -> StoreFile:
    """A file in a store.

    Raises:
        NotFound: it is not in the store.
    """
    row = await conn.fetchrow(f"{_SELECT} WHERE v.vector_store_id = $1 AND v.file_id = $2", store_id, file_id)
    if row is None:
        raise _not_in_store(store_id, file_id)
    return StoreFile(**dict(row))


async def list_store_files(
    conn: Connection, *, store_id: UUID, batch_id: UUID | None, status: str | None, page: PageRequest
) -> Page[StoreFile]:
    """The files of a store (or of one batch into it), by when they were uploaded.

    The cursor is an id, not a row: who deletes while listing still sees every file.
    """
    clause, parameters = page_clause(page, "v.file_id", 4)
    rows = await conn.fetch(
        f"""
        {_SELECT} WHERE v.vector_store_id = $1 AND ($2::uuid IS NULL OR i.batch_id = $2)
          AND ($3::text[] IS NULL OR i.state = ANY($3)) {clause}
        """,
        store_id,
        batch_id,
        None if status is None else STATUS_STATES[status],
        *parameters,
    )
    return make_page(page, [StoreFile(**dict(row)) for row in rows])


async def update_attributes(conn: Connection, *, store_id: UUID, file_id: UUID, attributes: dict[str, Any]) -> None:
    """Replace a file's attributes in a store; searches filter by them from now on."""
    await conn.execute(
        "UPDATE vector_store_files SET attributes = $3 WHERE vector_store_id = $1 AND file_id = $2",
        store_id,
        file_id,
        attributes,
    )


def _not_in_store(store_id: UUID, file_id: UUID) -> NotFound:
    return NotFound(
        f"No file found with id '{to_wire('file', file_id)}' in vector store '{to_wire('vs', store_id)}'.",
        code="not_found",
    )


async def _targets(conn: Connection, ingestion_id: UUID, lock: str) -> list[Target]:
    rows = await conn.fetch(
        f"""
        SELECT v.vector_store_id, s.shard, s.model, s.dimensions
        FROM vector_store_files v JOIN vector_stores s ON s.id = v.vector_store_id
        WHERE v.ingestion_id = $1 ORDER BY v.vector_store_id {lock}
        """,
        ingestion_id,
    )
    return [Target(**dict(row)) for row in rows]


async def _lock_ingestions(conn: Connection, condition: str, *parameters: object) -> list[UUID]:
    rows = await conn.fetch(
        f"""
        SELECT id FROM ingestions WHERE id IN (
            SELECT v.ingestion_id FROM vector_store_files v WHERE {condition}
        ) ORDER BY id FOR UPDATE
        """,
        *parameters,
        timeout=LONG_STATEMENT_SECONDS,
    )
    return [row["id"] for row in rows]


async def _placements(conn: Connection, condition: str, *parameters: object) -> list[Placement]:
    rows: list[asyncpg.Record] = await conn.fetch(
        f"""
        SELECT s.shard, v.vector_store_id, v.file_id
        FROM vector_store_files v JOIN vector_stores s ON s.id = v.vector_store_id WHERE {condition}
        """,
        *parameters,
    )
    return [Placement(**dict(row)) for row in rows]


async def _detach(conn: Connection, condition: str, *parameters: object) -> list[Placement]:
    """Rival: a commit of the same file; it holds the ingestion's lock, so it is either whole or not begun."""
    ingestion_ids = await _lock_ingestions(conn, condition, *parameters)
    placements = await _placements(conn, condition, *parameters)
    await conn.execute(f"DELETE FROM vector_store_files v WHERE {condition}", *parameters)
    await _cancel_without_store(conn, ingestion_ids)
    return placements


async def _cancel_without_store(conn: Connection, ingestion_ids: Sequence[UUID]) -> None:
    await conn.execute(
        f"""
        {CANCEL}
        WHERE id = ANY($1) AND state IN ('queued', 'running')
          AND NOT EXISTS (SELECT 1 FROM vector_store_files v WHERE v.ingestion_id = ingestions.id)
        """,
        ingestion_ids,
        timeout=LONG_STATEMENT_SECONDS,
    )
