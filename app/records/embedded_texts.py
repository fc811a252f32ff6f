"""Embeddings that a paid provider returned, kept for a day: a retry pays only for what is missing."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from app.db import Connection


async def find_embedded(
    conn: Connection, *, owner_id: UUID, model: str, dimensions: int, digests: Sequence[bytes]
) -> dict[bytes, bytes]:
    """Kept embeddings by SHA-256 of the text: little-endian float16, 2 * `dimensions` bytes each."""
    rows = await conn.fetch(
        """
        SELECT text_sha256, embedding FROM embedded_texts
        WHERE owner_id = $1 AND model = $2 AND dimensions = $3 AND text_sha256 = ANY($4)
        """,
        owner_id,
        model,
        dimensions,
        digests,
    )
    return {row["text_sha256"]: row["embedding"] for row in rows}


async def keep_embedded(
    conn: Connection, *, owner_id: UUID, model: str, dimensions: int, embeddings: Mapping[bytes, bytes]
) -> bool:
    """Keep embeddings by SHA-256 of the text; one that is there already stays. False if all are."""
    status = await conn.execute(
        """
        INSERT INTO embedded_texts (owner_id, model, dimensions, text_sha256, embedding)
        SELECT $1, $2, $3, e.digest, e.embedding FROM unnest($4::bytea[], $5::bytea[]) AS e (digest, embedding)
        ORDER BY 4 ON CONFLICT DO NOTHING
        """,
        owner_id,
        model,
        dimensions,
        list(embeddings),
        list(embeddings.values()),
    )
    return status != "INSERT 0 0"


async def forget_old_embedded(conn: Connection, *, limit: int = 10_000) -> None:
    """Drop embeddings older than a day, at most `limit` at a time."""
    await conn.execute(
        """
        DELETE FROM embedded_texts WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM embedded_texts WHERE created_at < now() - interval '1 day' LIMIT $1))
        """,
        limit,
    )
