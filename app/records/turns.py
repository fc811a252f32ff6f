"""Whose turn it is: users take turns, and a user's files come in the order in which they are due."""

import math
from collections.abc import Sequence
from uuid import UUID

from app.db import Connection
from app.records.ingestions import CLAIM, CLAIMED, Claim
from app.settings import LOCAL_MODEL

NOBODY = UUID(int=0)
_MOST_PUT_OFF = 2000


async def users_waiting(conn: Connection, *, after: UUID, limit: int) -> list[UUID]:
    """The next `limit` users by id, after one, who have something due: one look into the index a user."""
    rows = await conn.fetch(
        """
        WITH RECURSIVE walk (user_id, earliest) AS (
            (SELECT user_id, next_run_at FROM ingestions WHERE state = 'queued' AND user_id > $1
             ORDER BY user_id, next_run_at LIMIT 1)
            UNION ALL
            SELECT n.user_id, n.next_run_at FROM walk CROSS JOIN LATERAL (
                SELECT user_id, next_run_at FROM ingestions WHERE state = 'queued' AND user_id > walk.user_id
                ORDER BY user_id, next_run_at LIMIT 1
            ) n
        )
        SELECT user_id FROM walk WHERE earliest <= now() LIMIT $2
        """,
        after,
        limit,
    )
    return [row["user_id"] for row in rows]


async def claim_due(
    conn: Connection, *, limit: int, lease_seconds: float, worker: str, after: UUID = NOBODY
) -> list[Claim]:
    """Take up to `limit` due ingestions: each user's share, beginning with the user whose id follows on `after`.

    Rows that a rival is taking are skipped, so it may be fewer than there are.
    """
    user_ids = await users_waiting(conn, after=after, limit=limit)
    if len(user_ids) < limit:
        others = await users_waiting(conn, after=NOBODY, limit=limit - len(user_ids))
        user_ids += [user_id for user_id in others if user_id <= after]
    return await _claim_of(conn, user_ids, limit=limit, lease_seconds=lease_seconds, worker=worker)


async def _claim_of(
    conn: Connection, user_ids: Sequence[UUID], *, limit: int, lease_seconds: float, worker: str
) -> list[Claim]:
    claim_all = CLAIM.format(hinted_at="now()")  # their jobs may be waiting in the queue
    rows = await conn.fetch(
        f"""
        {claim_all} AND i.id = ANY(ARRAY( -- evaluated once; a join would run IN's subquery again and pass the limit
            SELECT line.id FROM unnest($3::uuid[]) AS u (user_id) CROSS JOIN LATERAL (
                SELECT id FROM ingestions WHERE state = 'queued' AND user_id = u.user_id AND next_run_at <= now()
                ORDER BY next_run_at, id LIMIT $4 FOR UPDATE SKIP LOCKED
            ) line LIMIT $5
        )) {CLAIMED}
        """,
        lease_seconds,
        worker,
        user_ids,
        math.ceil(limit / max(1, len(user_ids))),
        limit,
    )
    return [Claim(**dict(row)) for row in rows]


async def put_off_others(conn: Connection, held: Claim, *, delay_seconds: float, message: str) -> None:
    """Put off what waits of the same user and is to be paid by the same key, among as many as a batch has.

    The jobs that the queue has of them find them not yet due.
    """
    await conn.execute(
        """
        UPDATE ingestions SET next_run_at = now() + make_interval(secs => $3), hinted_at = NULL, error_message = $4
        WHERE id = ANY(ARRAY(
            SELECT id FROM ingestions WHERE state = 'queued' AND id = ANY(ARRAY(
                SELECT i.id FROM (
                    SELECT id, embedding_key_id FROM ingestions WHERE state = 'queued' AND user_id = $1
                      AND next_run_at < now() + make_interval(secs => $3)
                    ORDER BY next_run_at, id LIMIT $6
                ) i WHERE embedding_key_id IS NOT DISTINCT FROM $2 AND EXISTS (
                    -- without a key of their own, files for the built-in model look the same
                    SELECT FROM vector_store_files v JOIN vector_stores s ON s.id = v.vector_store_id
                    WHERE v.ingestion_id = i.id AND s.model <> $5
                )
            )) FOR UPDATE SKIP LOCKED
        ))
        """,
        held.user_id,
        held.embedding_key_id,
        delay_seconds,
        message,
        LOCAL_MODEL,
        _MOST_PUT_OFF,
    )


def turn_after(claims: Sequence[Claim], after: UUID) -> UUID:
    """The last user whom these claims, made from `after` on, have served: the next turn begins behind him."""
    return max((held.user_id for held in claims), key=lambda user_id: (user_id <= after, user_id), default=after)
