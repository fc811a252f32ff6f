"""Creating requests that were accepted: the same one sent again finds what it made the first time."""

from dataclasses import dataclass
from uuid import UUID

from app.db import Connection
from app.errors import KeyReused


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """What tells a creating request from others of its user; `may_repeat` if it may be one sent again."""

    fingerprint: bytes
    content_sha256: bytes
    may_repeat: bool
    keep_seconds: float


async def accept(conn: Connection, request: RequestIdentity, *, user_id: UUID, created_id: UUID) -> UUID:
    """Note that a request is about to create `created_id`, in the transaction that does; or what it made before.

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
            FROM (SELECT NOT $6 OR a.expires_at < now() AS is_ours) AS whose
        )
        RETURNING created_id, content_sha256
        """,
        user_id,
        request.fingerprint,
        request.content_sha256,
        created_id,
        request.keep_seconds,
        request.may_repeat,
    )
    assert row is not None  # noqa: S101 - either branch returns the row
    if row["content_sha256"] != request.content_sha256:
        raise KeyReused
    standing: UUID = row["created_id"]
    return standing


async def forget_old_requests(conn: Connection, *, limit: int = 10_000) -> None:
    """Drop what has expired, at most `limit` at a time."""
    await conn.execute(
        """
        DELETE FROM accepted_requests WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM accepted_requests WHERE expires_at < now() LIMIT $1))
        """,
        limit,
    )
