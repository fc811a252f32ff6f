"""Checks the whole database for broken promises; the tests' oracle and an operator's first question."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.db import Connection, connection
from app.doorbell import DoorbellUnavailable, job_id_of
from app.resources import Resources

_MOST_FINDINGS_A_CHECK = 50

_CHECKS: dict[str, str] = {
    "a completed file has exactly its chunks in each of its stores": """
        SELECT format('file %s in store %s: %s chunks recorded, %s of the ingestion, %s there (ordinals to %s)',
                      v.file_id, v.vector_store_id, v.chunk_count, i.chunks_total, c.found, c.last)
        FROM vector_store_files v
        JOIN ingestions i ON i.id = v.ingestion_id
        JOIN vector_stores s ON s.id = v.vector_store_id
        CROSS JOIN LATERAL (
            SELECT count(*) AS found, coalesce(max(ordinal) + 1, 0) AS last FROM chunks
            WHERE shard = s.shard AND vector_store_id = v.vector_store_id AND file_id = v.file_id
        ) c
        WHERE i.state = 'completed'
          AND (v.chunk_count, i.chunks_total, c.last) IS DISTINCT FROM (c.found, c.found, c.found)
    """,
    "a completed file has at least one chunk": """
        SELECT format('file %s: ingestion %s', file_id, id) FROM ingestions
        WHERE state = 'completed' AND chunks_total = 0
    """,
    "every chunk belongs to a completed file of its store, in the store's shard": """
        SELECT format(
                   '%s chunks of file %s in store %s, shard %s', count(*), c.file_id, c.vector_store_id, c.shard
               )
        FROM chunks c WHERE NOT EXISTS (
            SELECT 1 FROM vector_store_files v
            JOIN ingestions i ON i.id = v.ingestion_id AND i.state = 'completed'
            JOIN vector_stores s ON s.id = v.vector_store_id AND s.shard = c.shard
            WHERE v.vector_store_id = c.vector_store_id AND v.file_id = c.file_id
        ) GROUP BY c.file_id, c.vector_store_id, c.shard
    """,
    "usage_bytes is what the chunks take": """
        SELECT format('file %s in store %s: %s recorded, %s there',
                      v.file_id, v.vector_store_id, v.usage_bytes, c.bytes)
        FROM vector_store_files v JOIN vector_stores s ON s.id = v.vector_store_id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(octet_length(content) + 2 * vector_dims(embedding)), 0) AS bytes FROM chunks
            WHERE shard = s.shard AND vector_store_id = v.vector_store_id AND file_id = v.file_id
        ) c WHERE c.bytes <> v.usage_bytes
    """,
    "a store's shard holds its dimensions": """
        SELECT format('store %s: %s dimensions in a shard of %s', s.id, s.dimensions, p.dimensions)
        FROM vector_stores s JOIN shards p ON p.id = s.shard WHERE p.dimensions <> s.dimensions
    """,
    "no lease is past due by more than a sweep": """
        SELECT format('ingestion %s: lease of %s ended at %s', id, leased_by, lease_until) FROM ingestions
        WHERE state = 'running' AND lease_until < now() - make_interval(secs => $1)
    """,
    "unfinished work has a store to go to": """
        SELECT format('ingestion %s is %s for no store', i.id, i.state) FROM ingestions i
        WHERE i.state IN ('queued', 'running')
          AND NOT EXISTS (SELECT 1 FROM vector_store_files v WHERE v.ingestion_id = i.id)
    """,
    "a failure has a reason": """
        SELECT format('ingestion %s', id) FROM ingestions
        WHERE state = 'failed' AND (coalesce(error_code, '') = '' OR coalesce(error_message, '') = '')
    """,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise that is broken, and where."""

    promise: str
    where: str


async def examine(resources: Resources) -> list[Finding]:
    """All broken invariants, at most 50 of each kind; rows are compared with their RQ jobs if Redis answers.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    findings: list[Finding] = []
    grace_seconds = 2 * resources.settings.sweep_interval_seconds
    async with connection(resources.pool) as conn:
        for promise, sql in _CHECKS.items():
            parameters = [grace_seconds] if "$1" in sql else []
            rows = await conn.fetch(f"{sql} LIMIT {_MOST_FINDINGS_A_CHECK}", *parameters)
            findings += [Finding(promise, row[0]) for row in rows]
        jobs = await _rows_with_jobs(conn, grace_seconds)
    findings += await _disagreements(resources, jobs)
    return findings


@dataclass(frozen=True, slots=True)
class _RowWithJob:
    ingestion_id: str
    job_id: str
    state: str


async def _rows_with_jobs(conn: Connection, grace_seconds: float) -> Sequence[_RowWithJob]:
    """Rows settled long enough ago, or due long enough, for their job to have followed."""
    rows = await conn.fetch(
        """
        SELECT id, state, fence + CASE WHEN state = 'queued' THEN 1 ELSE 0 END AS fence FROM ingestions
        WHERE finished_at < now() - make_interval(secs => $1)
           OR (state = 'queued' AND hinted_at < now() - make_interval(secs => $1) AND next_run_at <= now())
        ORDER BY id DESC LIMIT 10000
        """,
        grace_seconds,
    )
    return [_RowWithJob(str(row["id"]), job_id_of(row["id"], row["fence"]), row["state"]) for row in rows]


async def _disagreements(resources: Resources, rows: Sequence[_RowWithJob]) -> list[Finding]:
    try:
        statuses = await resources.doorbell.statuses([row.job_id for row in rows])
    except DoorbellUnavailable as exc:
        return [Finding("Redis answers", f"{exc}; work goes on without it")]
    findings = []
    for row in rows if statuses else ():
        status = statuses.get(row.job_id)
        if not _agrees(row.state, status):
            findings.append(
                Finding(
                    "a row and its RQ job agree",
                    f"ingestion {row.ingestion_id} is {row.state}, job {row.job_id} is {status or 'gone'}",
                )
            )
    return findings


def _agrees(state: str, status: str | None) -> bool:
    """A settled row's job is over (or was never, or is no longer, there); a due row's job is waiting."""
    if state == "queued":
        return status in {"queued", "scheduled", "started"}
    if state == "completed":
        return status in {None, "finished"}
    waiting = {"queued", "scheduled", "deferred"}
    return status not in waiting and (status != "started" or state == "cancelled")  # its next beat ends it
