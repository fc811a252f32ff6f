"""What nobody works on any more, though somebody has claimed it."""

from collections.abc import Sequence
from uuid import UUID

from app.db import Connection
from app.records.ingestions import GIVE_BACK


async def take_back_expired(conn: Connection, *, most_crashes: int, apart_seconds: float) -> int:
    """Queue again what no living worker holds; a file that takes `most_crashes` workers down fails as poison.

    Only one that was the only suspect in its worker's hands: of several, any may be the culprit, and most are not.
    Who is one crash away from the verdict therefore comes back apart from the others, by `apart_seconds` each.
    Company protects nobody for ever: three times as many crashes are a verdict, too.

    Rival: a worker that wakes up now; its fence is old as soon as somebody claims the row again, and until
    then its writes find the state changed.
    """
    rows = await conn.fetch(
        """
        WITH expired AS (
            SELECT id, leased_by, crashes + 1 AS crashes FROM ingestions
            WHERE state = 'running' AND lease_until < now() FOR UPDATE SKIP LOCKED
        ), judged AS (
            SELECT id, crashes, crashes >= $1 AND (
                       count(*) FILTER (WHERE crashes >= $1) OVER (PARTITION BY leased_by) = 1 OR crashes >= 3 * $1
                   ) AS is_poison,
                   count(*) FILTER (WHERE crashes >= $1 - 1) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING)
                       AS suspects_until
            FROM expired
        )
        UPDATE ingestions i SET
            crashes = j.crashes, lease_until = NULL, stage = CASE WHEN j.is_poison THEN 'done' ELSE 'queued' END,
            state = CASE WHEN j.is_poison THEN 'failed' ELSE 'queued' END,
            finished_at = CASE WHEN j.is_poison THEN now() END,
            error_code = CASE WHEN j.is_poison THEN 'poison' END,
            error_message = CASE WHEN j.is_poison
                THEN format('The worker died or froze %s times while it worked on this file.', j.crashes)
                ELSE format('The worker %s was lost; the file is queued again.', leased_by) END,
            -- full jitter over 1 s, then 2 s: what died together must not come back together
            next_run_at = now() + random() * make_interval(secs => 2 ^ (least(j.crashes, 7) - 1))
                + CASE WHEN j.crashes >= $1 - 1 THEN make_interval(secs => $2 * (suspects_until - 1))
                  ELSE interval '0' END,
            hinted_at = NULL
        FROM judged j WHERE i.id = j.id RETURNING i.id
        """,
        most_crashes,
        apart_seconds,
    )
    return len(rows)


async def give_back_unanswered(
    conn: Connection,
    *,
    worker: str,
    held: Sequence[tuple[UUID, int]],
    from_seconds_ago: float,
    to_seconds_ago: float,
    timeout_seconds: float,
) -> int:
    """Queue again what `worker` claimed in that time without hearing of it: its connection broke at that moment.

    `held` are the (ingestion id, fence) pairs that it knows of. Rivals are left alone: whoever has locked such a
    row changes its state, or its lease ends.
    """
    rows = await conn.fetch(
        f"""
        {GIVE_BACK} WHERE id IN (
            SELECT id FROM ingestions
            WHERE state = 'running' AND leased_by = $1
              AND started_at BETWEEN now() - make_interval(secs => $2) AND now() - make_interval(secs => $3)
              AND (id, fence) NOT IN (SELECT * FROM unnest($4::uuid[], $5::int[]))
            FOR UPDATE SKIP LOCKED
        ) RETURNING id
        """,
        worker,
        from_seconds_ago,
        to_seconds_ago,
        [ingestion_id for ingestion_id, _ in held],
        [fence for _, fence in held],
        timeout=timeout_seconds,
    )
    return len(rows)
