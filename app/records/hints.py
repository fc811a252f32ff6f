"""Which ingestions the queue is to hear of, and which jobs in it have lost their purpose.

`hinted_at` of a queued row: when the queue last heard of it. Of a settled row: nobody has run the job of its last
hint (it was cancelled, or taken straight from Postgres), so that the job is to be withdrawn.

The queue serves who comes first, so it hears only of the next few files of each user: whoever has thousands waiting
stands before nobody else with more than these. Each file that is begun has the next one rung for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.db import Connection
from app.records.ingestions import Hint

_SETTLED = "state IN ('completed', 'failed', 'cancelled')"


@dataclass(frozen=True, slots=True)
class OvertakenHint:
    """A settled ingestion whose job may still be in the queue; of a cancelled one, that of the fence before too."""

    ingestion_id: UUID
    fence: int
    state: str


async def take_unhinted(
    conn: Connection, user_ids: Sequence[UUID], *, most_a_user: int, silent_seconds: float | None = None
) -> list[Hint]:
    """Of the next due rows of each user those of which the queue has not heard; marked as hinted now.

    Nor of which it has lost what it heard; nor, with `silent_seconds`, which it has not asked for since so long.
    The caller rings. Rivals who do the same each take what the other has not locked.
    """
    unheard = """(
        hinted_at IS NULL OR hinted_at < (SELECT since FROM queue_epochs)
        OR greatest(hinted_at, next_run_at) < now() - make_interval(secs => $3)
    )"""
    rows = await conn.fetch(
        f"""
        UPDATE ingestions SET hinted_at = now() WHERE id = ANY(ARRAY(
            SELECT id FROM ingestions WHERE state = 'queued' AND {unheard} AND id = ANY(ARRAY(
                SELECT line.id FROM unnest($1::uuid[]) AS u (user_id) CROSS JOIN LATERAL (
                    SELECT id, hinted_at, next_run_at FROM ingestions
                    WHERE state = 'queued' AND user_id = u.user_id AND next_run_at <= now()
                    ORDER BY next_run_at, id LIMIT $2
                ) line WHERE {unheard}
            )) FOR UPDATE SKIP LOCKED
        )) RETURNING id, user_id, embedding_key_id, fence + 1 AS next_fence
        """,
        user_ids,
        most_a_user,
        silent_seconds,
    )
    return [Hint(row["id"], row["user_id"], row["embedding_key_id"], row["next_fence"]) for row in rows]


async def mark_unhinted(conn: Connection, hints: Sequence[Hint]) -> None:
    """Note that the queue did not hear these hints, so that the next sweep rings again."""
    await conn.execute(
        """
        UPDATE ingestions SET hinted_at = NULL WHERE id IN (
            SELECT id FROM ingestions WHERE id = ANY($1) AND state = 'queued' ORDER BY id FOR UPDATE)
        """,
        [hint.ingestion_id for hint in hints],
    )


async def overtaken_hints(conn: Connection, *, limit: int) -> list[OvertakenHint]:
    """Settled rows whose jobs nobody has run."""
    rows = await conn.fetch(
        f"SELECT id, fence, state FROM ingestions WHERE {_SETTLED} AND hinted_at IS NOT NULL LIMIT $1", limit
    )
    return [OvertakenHint(row["id"], row["fence"], row["state"]) for row in rows]


async def note_withdrawn(conn: Connection, withdrawn: Sequence[OvertakenHint]) -> int:
    """Note that the queue has no jobs of these any more; of how many: the next sweep gets what a rival holds."""
    noted = await conn.fetch(
        f"""
        UPDATE ingestions SET hinted_at = NULL WHERE id IN (
            SELECT id FROM ingestions WHERE id = ANY($1) AND {_SETTLED} ORDER BY id FOR UPDATE SKIP LOCKED)
        RETURNING id
        """,
        [each.ingestion_id for each in withdrawn],
    )
    return len(noted)
