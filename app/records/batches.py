"""File batches: ingestions that were asked for together; all they have of their own is an id and a time."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.db import Connection
from app.errors import NotFound
from app.ids import to_wire
from app.records.ingestions import CANCEL
from app.records.vector_stores import COUNTS, FileCounts


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch and how far its files are; `vector_store_id` is None for an upload into several stores."""

    id: UUID
    owner_id: UUID
    vector_store_id: UUID | None
    created_at: datetime
    counts: FileCounts

    @property
    def status(self) -> str:
        """As OpenAI has it: in progress while any file is; cancelled or failed only if no file completed."""
        if self.counts.in_progress:
            return "in_progress"
        if self.counts.cancelled and not self.counts.completed:
            return "cancelled"
        return "failed" if self.counts.failed and not self.counts.completed else "completed"


async def insert_batch(conn: Connection, batch_id: UUID, *, owner_id: UUID, vector_store_id: UUID | None) -> None:
    """Record a batch; its ingestions follow in the same transaction."""
    await conn.execute(
        "INSERT INTO batches (id, owner_id, vector_store_id) VALUES ($1, $2, $3)",
        batch_id,
        owner_id,
        vector_store_id,
    )


async def get_batch(
    conn: Connection, batch_id: UUID, *, vector_store_id: UUID | None = None, owner_id: UUID | None = None
) -> Batch:
    """A batch of this store or owner, whichever is given.

    Raises:
        NotFound: there is none.
    """
    row = await conn.fetchrow(
        f"""
        SELECT b.id, b.owner_id, b.vector_store_id, b.created_at, c.* FROM batches b CROSS JOIN LATERAL (
            SELECT {COUNTS} FROM ingestions i WHERE i.batch_id = b.id
        ) c WHERE b.id = $1 AND ($2::uuid IS NULL OR b.vector_store_id = $2)
              AND ($3::uuid IS NULL OR b.owner_id = $3)
        """,
        batch_id,
        vector_store_id,
        owner_id,
    )
    if row is None:
        raise NotFound(f"No file batch found with id '{to_wire('vsfb', batch_id)}'.", code="not_found")
    return Batch(row["id"], row["owner_id"], row["vector_store_id"], row["created_at"], FileCounts.from_row(row))


async def cancel_batch(conn: Connection, batch_id: UUID) -> None:
    """Cancel what is not settled. Running attempts notice at their next beat; their commits are refused."""
    await conn.execute(
        f"""
        {CANCEL}
        WHERE id IN (
            SELECT id FROM ingestions WHERE batch_id = $1 AND state IN ('queued', 'running') ORDER BY id FOR UPDATE
        )
        """,
        batch_id,
    )
