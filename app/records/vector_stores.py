"""Vector stores; their counts are derived from the rows that hold the truth, never kept twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from app.db import LONG_STATEMENT_SECONDS, Connection
from app.errors import NotFound
from app.ids import to_wire
from app.records.pages import Page, PageRequest, make_page, page_clause

COUNTS = """
    count(*) AS total,
    count(*) FILTER (WHERE i.state IN ('queued', 'running')) AS in_progress,
    count(*) FILTER (WHERE i.state = 'completed') AS completed,
    count(*) FILTER (WHERE i.state = 'failed') AS failed,
    count(*) FILTER (WHERE i.state = 'cancelled') AS cancelled
"""
"""SQL that counts ingestions `i` by the status that clients see."""

_IS_OVER = "coalesce(s.last_active_at + make_interval(days => s.expires_after_days) < now(), false)"
_SELECT = f"""
    SELECT s.id, s.owner_id, s.name, s.metadata, s.model, s.dimensions, s.shard, s.created_at, s.last_active_at,
           s.expires_after_days, {_IS_OVER} AS is_expired, c.* FROM vector_stores s CROSS JOIN LATERAL (
        SELECT {COUNTS}, coalesce(sum(f.usage_bytes), 0)::bigint AS usage_bytes
        FROM vector_store_files f JOIN ingestions i ON i.id = f.ingestion_id WHERE f.vector_store_id = s.id
    ) c
"""


@dataclass(frozen=True, slots=True)
class FileCounts:
    """How many files are in which status."""

    total: int
    in_progress: int
    completed: int
    failed: int
    cancelled: int

    @classmethod
    def from_row(cls, row: asyncpg.Record) -> "FileCounts":
        """The columns of `COUNTS`."""
        return cls(*(row[name] for name in ("total", "in_progress", "completed", "failed", "cancelled")))


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A vector store; model and dimensions never change after creation."""

    id: UUID
    owner_id: UUID
    name: str | None
    metadata: dict[str, str]
    model: str
    dimensions: int
    shard: int
    created_at: datetime
    last_active_at: datetime
    expires_after_days: int | None
    is_expired: bool
    counts: FileCounts
    usage_bytes: int

    @property
    def expires_at(self) -> datetime | None:
        """When it expires if nobody uses it until then."""
        if self.expires_after_days is None:
            return None
        return self.last_active_at + timedelta(days=self.expires_after_days)


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """What vectors a store holds, and the shard that they lie in."""

    shard: int
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class NewVectorStore:
    """What a vector store is made from."""

    id: UUID
    name: str | None
    metadata: dict[str, str]
    model: str
    dimensions: int
    shard: int
    expires_after_days: int | None


def _from_row(row: asyncpg.Record) -> VectorStore:
    return VectorStore(
        id=row["id"],
        owner_id=row["owner_id"],
        name=row["name"],
        metadata=row["metadata"],
        model=row["model"],
        dimensions=row["dimensions"],
        shard=row["shard"],
        created_at=row["created_at"],
        last_active_at=row["last_active_at"],
        expires_after_days=row["expires_after_days"],
        is_expired=row["is_expired"],
        counts=FileCounts.from_row(row),
        usage_bytes=row["usage_bytes"],
    )


async def insert_store(conn: Connection, new: NewVectorStore, *, owner_id: UUID) -> None:
    """Record a new, empty vector store."""
    await conn.execute(
        """
        INSERT INTO vector_stores (id, owner_id, name, metadata, model, dimensions, shard, expires_after_days)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        """,
        new.id,
        owner_id,
        new.name,
        new.metadata,
        new.model,
        new.dimensions,
        new.shard,
        new.expires_after_days,
    )


async def get_store(conn: Connection, store_id: UUID) -> VectorStore:
    """A vector store with its counts.

    Raises:
        NotFound: there is none.
    """
    row = await conn.fetchrow(f"{_SELECT} WHERE s.id = $1", store_id)
    if row is None:
        raise _no_store(store_id)
    return _from_row(row)


def _no_store(store_id: UUID) -> NotFound:
    return NotFound(f"No vector store found with id '{to_wire('vs', store_id)}'.", code="not_found")


async def read_space(conn: Connection, store_id: UUID) -> EmbeddingSpace:
    """What vectors a store holds.

    Raises:
        NotFound: there is none.
    """
    return (await _spaces(conn, [store_id], ""))[0]


async def lock_stores(conn: Connection, store_ids: Sequence[UUID]) -> list[EmbeddingSpace]:
    """What vectors these stores hold, in the order of their ids; none of them is deleted meanwhile.

    Raises:
        NotFound: names the first that a rival has deleted.
    """
    return await _spaces(conn, store_ids, "FOR KEY SHARE")


_EXPIRED = f"""
    {_IS_OVER} AND NOT EXISTS (
        SELECT FROM vector_store_files v JOIN ingestions i ON i.id = v.ingestion_id
        WHERE v.vector_store_id = s.id AND i.state IN ('queued', 'running'))
"""


async def expired_stores(conn: Connection, *, skip: Sequence[UUID], limit: int) -> list[UUID]:
    """Those that nobody has used for as long as they asked for, and that no file is on its way to; not `skip`."""
    rows = await conn.fetch(
        f"SELECT s.id FROM vector_stores s WHERE {_EXPIRED} AND s.id <> ALL($1) ORDER BY s.id LIMIT $2", skip, limit
    )
    return [row["id"] for row in rows]


async def lock_expired_store(conn: Connection, store_id: UUID) -> EmbeddingSpace | None:
    """As `lock_store_for_deletion`; None if it has been used meanwhile, or deleted."""
    row = await conn.fetchrow(
        f"""
        SELECT s.shard, s.model, s.dimensions FROM vector_stores s WHERE s.id = $1 AND {_EXPIRED} FOR UPDATE OF s
        """,
        store_id,
    )
    return EmbeddingSpace(**dict(row)) if row else None


async def lock_store_for_deletion(conn: Connection, store_id: UUID) -> EmbeddingSpace:
    """As `lock_stores` for one store that is about to be deleted: nobody attaches a file to it any more.

    Raises:
        NotFound: a rival has deleted it.
    """
    return (await _spaces(conn, [store_id], "FOR UPDATE"))[0]


async def _spaces(conn: Connection, store_ids: Sequence[UUID], lock: str) -> list[EmbeddingSpace]:
    rows = await conn.fetch(
        f"SELECT id, shard, model, dimensions FROM vector_stores WHERE id = ANY($1) ORDER BY id {lock}", store_ids
    )
    found = {row["id"] for row in rows}
    for store_id in store_ids:
        if store_id not in found:
            raise _no_store(store_id)
    return [EmbeddingSpace(row["shard"], row["model"], row["dimensions"]) for row in rows]


async def list_stores(conn: Connection, *, visible: str, user_id: UUID, page: PageRequest) -> Page[VectorStore]:
    """The stores a user may read; `visible` is the SQL that lists their ids for user $1."""
    clause, parameters = page_clause(page, "s.id", 2)
    rows = await conn.fetch(f"{_SELECT} WHERE s.id IN ({visible}) {clause}", user_id, *parameters)
    return make_page(page, [_from_row(row) for row in rows])


async def update_store(conn: Connection, store_id: UUID, changes: dict[str, Any]) -> None:
    """Set `name`, `metadata` or `expires_after_days`, whichever `changes` holds."""
    for column in ("name", "metadata", "expires_after_days"):
        if column in changes:
            await conn.execute(
                f"UPDATE vector_stores SET {column} = $2, last_active_at = now() WHERE id = $1",
                store_id,
                changes[column],
            )


async def note_activity(conn: Connection, store_ids: Sequence[UUID]) -> None:
    """Push the expiry back: at most one write a minute however often a store is used, and without a wait.

    Rival: whoever notes the same.
    """
    await conn.execute(
        """
        UPDATE vector_stores SET last_active_at = now() WHERE id IN (
            SELECT id FROM vector_stores
            WHERE id = ANY($1) AND last_active_at < now() - interval '1 minute' FOR NO KEY UPDATE SKIP LOCKED)
        """,
        store_ids,
    )


async def delete_store(conn: Connection, store_id: UUID) -> None:
    """Forget a store with its grants, batches and attachments; see `store_files.detach_all` for the order."""
    await conn.execute("DELETE FROM vector_stores WHERE id = $1", store_id, timeout=LONG_STATEMENT_SECONDS)
