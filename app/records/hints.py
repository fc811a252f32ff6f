"""Which ingestions the queue is to hear of, and which jobs in it have lost their purpose.

`hinted_at` of a queued row: when the queue last heard of it. Of a settled row: nobody has run the job of its last
hint (it was cancelled, or taken straight from Postgres), so that the job is to be withdrawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.db import Connection
from app.records.ingestions import Hint

_HEARD = "coalesce(hinted_at, '-infinity'::timestamptz)"  # as ix_ingestions_unheard has it
_SETTLED = "state IN ('completed', 'failed', 'cancelled')"


@dataclass(frozen=True, slots=True)
class OvertakenHint:
    """A settled ingestion whose job may still be in the queue; of a cancelled one, that of the fence before too."""

    ingestion_id: UUID
    fence: int
    state: str


async def take_unhinted(conn: Connection, *, limit: int, silent_seconds: float) -> list[Hint]:
    """Due rows of which the queue has not heard for a while, or lost what it heard; marked as hinted now.

    Those not heard of for longest come first, by an index: in a long queue, the rest is not even read. The caller
    rings.
    """
    rows = await conn.fetch(
        f"""
        UPDATE ingestions SET hinted_at = now() WHERE id = ANY(ARRAY(
            SELECT id FROM ingestions
            WHERE state = 'queued' AND next_run_at <= now()
              AND {_HEARD} < greatest((SELECT since FROM queue_epochs), now() - make_interval(secs => $1))
              AND (hinted_at IS NULL OR hinted_at < (SELECT since FROM queue_epochs)
                   OR next_run_at < now() - make_interval(secs => $1))
            ORDER BY {_HEARD} LIMIT $2 FOR UPDATE SKIP LOCKED
        )) RETURNING id, user_id, embedding_key_id, fence + 1 AS next_fence
        """,
        silent_seconds,
        limit,
    )
    return [Hint(row["id"], row["user_id"], row["embedding_key_id"], row["next_fence"]) for row in rows]


async def mark_unhinted(conn: Connection, hints: Sequence[Hint]) -> None:
    """Note that the queue did not hear these hints, so that the next sweep rings again."""
    await conn.execute(
        "UPDATE ingestions SET hinted_at = NULL WHERE id = ANY($1)", [hint.ingestion_id for hint in hints]
    )


async def overtaken_hints(conn: Connection, *, limit: int) -> list[OvertakenHint]:
    """Settled rows whose jobs nobody has run."""
    rows = await conn.fetch(
        f"SELECT id, fence, state FROM ingestions WHERE {_SETTLED} AND hinted_at IS NOT NULL LIMIT $1", limit
    )
    return [OvertakenHint(row["id"], row["fence"], row["state"]) for row in rows]


async def note_withdrawn(conn: Connection, withdrawn: Sequence[OvertakenHint]) -> None:
    """Note that the queue has no jobs of these any more."""
    await conn.execute(
        f"UPDATE ingestions SET hinted_at = NULL WHERE {_SETTLED} AND id = ANY($1)",
        [each.ingestion_id for each in withdrawn],
    )
