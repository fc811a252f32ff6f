"""Which embedding key pays for a file: own → group creator's → server default → refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pydantic import SecretStr

from app.access.sealing import seal, unseal
from app.db import Connection
from app.errors import BadRequest, Broken, NotFound, Unprocessable
from app.ids import new_id
from app.settings import KeyEncryptionKey

_NO_KEY = (
    "No embedding key: you have none (POST /v1/embedding_keys adds one), no creator of a group you are in "
    "has one, and the server has no default (RAG_OPENAI_API_KEY)."
)


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """What is shown of an embedding key; the secret stays sealed."""

    id: UUID
    name: str
    base_url: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class OpenedKey:
    """An embedding key ready for use; lives only in memory."""

    id: UUID
    base_url: str
    secret: SecretStr


async def add_embedding_key(
    conn: Connection,
    *,
    owner_id: UUID,
    name: str,
    base_url: str,
    secret: SecretStr,
    kek: KeyEncryptionKey | None,
    key_id: UUID | None = None,
) -> EmbeddingKey:
    """Seal a user's key and keep it, under `key_id` or else a new id.

    Raises:
        BadRequest: the server has no key-encryption key, so it cannot keep secrets.
    """
    if kek is None:
        raise BadRequest(
            "This server cannot keep embedding keys: SLUICE_KEY_ENCRYPTION_KEY is not set.", code="no_sealing"
        )
    key_id = key_id or new_id()
    sealed = seal(secret, kek, key_id=key_id, owner_id=owner_id, base_url=base_url)
    row = await conn.fetchrow(
        """
        INSERT INTO embedding_keys (id, owner_id, name, base_url, kek_id, sealed)
        VALUES ($1, $2, $3, $4, $5, $6) RETURNING id, name, base_url, created_at, revoked_at
        """,
        key_id,
        owner_id,
        name,
        base_url,
        kek.id,
        sealed,
    )
    return EmbeddingKey(**dict(row or {}))


async def get_embedding_key(conn: Connection, key_id: UUID, *, owner_id: UUID) -> EmbeddingKey:
    """One of a user's embedding keys.

    Raises:
        NotFound: the user has no such key.
    """
    row = await conn.fetchrow(
        "SELECT id, name, base_url, created_at, revoked_at FROM embedding_keys WHERE id = $1 AND owner_id = $2",
        key_id,
        owner_id,
    )
    if row is None:
        raise NotFound("You have no embedding key with this id.")
    return EmbeddingKey(**dict(row))


async def list_embedding_keys(conn: Connection, owner_id: UUID) -> Sequence[EmbeddingKey]:
    """A user's embedding keys, newest first."""
    rows = await conn.fetch(
        """
        SELECT id, name, base_url, created_at, revoked_at
        FROM embedding_keys WHERE owner_id = $1 ORDER BY id DESC
        """,
        owner_id,
    )
    return [EmbeddingKey(**dict(row)) for row in rows]


async def revoke_embedding_key(conn: Connection, *, owner_id: UUID, key_id: UUID) -> None:
    """Take a key out of use; work that counts on it fails with `key_revoked`. Its ciphertext is wiped.

    Raises:
        NotFound: the user has no such key.
    """
    done = await conn.fetchval(
        """
        UPDATE embedding_keys SET revoked_at = coalesce(revoked_at, now()), sealed = ''
        WHERE id = $1 AND owner_id = $2 RETURNING id
        """,
        key_id,
        owner_id,
    )
    if done is None:
        raise NotFound("You have no embedding key with this id.")


async def resolve_embedding_key(conn: Connection, *, user_id: UUID, server_has_default: bool) -> UUID | None:
    """The id of the key that pays for this user's files; None is the server's default.

    Raises:
        BadRequest: nobody pays (`no_embedding_key`).
    """
    key_id: UUID | None = await conn.fetchval(
        """
        SELECT k.id FROM embedding_keys k
        LEFT JOIN (
            SELECT g.creator_id, min(g.created_at) AS since
            FROM groups g JOIN group_members m ON m.group_id = g.id
            WHERE m.user_id = $1 GROUP BY g.creator_id
        ) creators ON creators.creator_id = k.owner_id
        WHERE k.revoked_at IS NULL AND (k.owner_id = $1 OR creators.creator_id IS NOT NULL)
        ORDER BY k.owner_id = $1 DESC, creators.since, k.id DESC LIMIT 1
        """,
        user_id,
    )
    if key_id is None and not server_has_default:
        raise BadRequest(_NO_KEY, code="no_embedding_key")
    return key_id


async def open_embedding_key(conn: Connection, key_id: UUID, kek: KeyEncryptionKey | None) -> OpenedKey:
    """The key itself, for a worker that is about to call the provider.

    Raises:
        Unprocessable: `key_revoked`, also when it was deleted with its owner.
        Broken: this process lacks the key-encryption key that sealed it.
    """
    row = await conn.fetchrow(
        "SELECT owner_id, base_url, kek_id, sealed, revoked_at FROM embedding_keys WHERE id = $1", key_id
    )
    if row is None or row["revoked_at"] is not None:
        raise Unprocessable(
            "key_revoked",
            "The embedding key that was to pay for this file has been revoked; add another one "
            "and attach the file again.",
        )
    if kek is None or kek.id != row["kek_id"]:
        raise Broken(
            f"SLUICE_KEY_ENCRYPTION_KEY is not the one ({row['kek_id']}) that sealed embedding key {key_id}"
        )
    secret = unseal(row["sealed"], kek, key_id=key_id, owner_id=row["owner_id"], base_url=row["base_url"])
    return OpenedKey(key_id, row["base_url"], secret)
