"""Creating requests that were accepted: the same one sent again finds what it made the first time."""

from dataclasses import dataclass
from uuid import UUID

from app.db import Connection
from app.errors import KeyReused

# a batch or an attachment stands while a file of it is in its store, and neither failed nor cancelled
_STANDS = """
    SELECT EXISTS (SELECT FROM files WHERE id = $1)
        OR EXISTS (SELECT FROM vector_stores WHERE id = $1)
        OR EXISTS (SELECT FROM embedding_keys WHERE id = $1 AND revoked_at IS NULL)
        OR EXISTS (
            SELECT FROM ingestions i JOIN vector_store_files v ON v.ingestion_id = i.id
            WHERE (i.id = $1 OR i.batch_id = $1) AND i.state NOT IN ('failed', 'cancelled'))
"""


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """What tells a creating request from others of its user."""

    fingerprint: bytes
    content_sha256: bytes
    keep_seconds: float
    first_sent_seconds: float | None  # at most so long ago, if this may be one sent again
    is_named: bool  # by its Idempotency-Key; else an equal one may be another


async def accept(conn: Connection, request: RequestIdentity, *, user_id: UUID, created_id: UUID) -> UUID:
    """Note that a request is about to create `created_id`, in the transaction that does; or what it made before.

    Of a request that is not named, what it made before is the answer only while that stands: an upload after a
    deletion, or another try with a file that failed, is equal to the first one and no repetition.

    Rival: the same request on another connection; the row makes it wait for our commit, and then it finds us.

    Raises:
        KeyReused: the key came with another content before.
    """
    row = await conn.fetchrow(
        """
        INSERT INTO accepted_requests AS a (user_id, fingerprint, content_sha256, created_id, expires_at)
        VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
        ON CONFLICT (user_id, fingerprint) DO UPDATE SET (content_sha256, created_id, expires_at) = (
            SELECT CASE WHEN is_ours THEN excluded.content_sha256 ELSE a.content_sha256 END,
                   CASE WHEN is_ours THEN excluded.created_id ELSE a.created_id END,
                   CASE WHEN is_ours THEN excluded.expires_at ELSE a.expires_at END
            FROM (
                SELECT $6::float8 IS NULL OR a.expires_at < now() + make_interval(secs => $5 - $6) AS is_ours
            ) AS whose
        )
        RETURNING created_id, content_sha256
        """,
        user_id,
        request.fingerprint,
        request.content_sha256,
        created_id,
        request.keep_seconds,
        request.first_sent_seconds,
    )
    assert row is not None  # noqa: S101 - either branch returns the row
    if row["content_sha256"] != request.content_sha256:
        raise KeyReused
    standing: UUID = row["created_id"]
    # a statement of its own, as the one above does not see what a rival it waited for has made
    if standing == created_id or request.is_named or await conn.fetchval(_STANDS, standing):
        return standing
    await conn.execute(
        """
        UPDATE accepted_requests SET created_id = $3, expires_at = now() + make_interval(secs => $4)
        WHERE user_id = $1 AND fingerprint = $2
        """,
        user_id,
        request.fingerprint,
        created_id,
        request.keep_seconds,
    )
    return created_id


async def forget_old_requests(conn: Connection, *, limit: int = 10_000) -> None:
    """Drop what has expired, at most `limit` at a time."""
    await conn.execute(
        """
        DELETE FROM accepted_requests WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM accepted_requests WHERE expires_at < now() LIMIT $1))
        """,
        limit,
    )
