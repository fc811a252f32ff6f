"""API keys: shown once when made, kept only as a SHA-256; 256 random bits need no slow hash."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from app.db import Connection
from app.errors import NotFound, Unauthorized
from app.ids import new_id

_PREFIX = "sk-sluice-"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: the user behind the API key."""

    user_id: UUID
    user_name: str
    token_id: UUID


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token at its birth, the only moment at which its text is known."""

    id: UUID
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of an API key."""

    id: UUID
    user_name: str
    name: str
    hint: str
    created_at: datetime
    revoked_at: datetime | None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def create_token(conn: Connection, *, user_id: UUID, name: str) -> NewToken:
    """A new API key for a user."""
    token = NewToken(new_id(), _PREFIX + secrets.token_urlsafe(32))
    await conn.execute(
        "INSERT INTO api_tokens (id, user_id, name, token_sha256, hint) VALUES ($1, $2, $3, $4, $5)",
        token.id,
        user_id,
        name,
        _digest(token.text),
        token.text[-4:],
    )
    return token


async def authenticate(conn: Connection, text: str) -> Principal:
    """The user whose API key this is.

    Raises:
        Unauthorized: nobody's, or revoked.
    """
    row = await conn.fetchrow(
        """
        SELECT u.id AS user_id, u.name AS user_name, t.id AS token_id
        FROM api_tokens t JOIN users u ON u.id = t.user_id
        WHERE t.token_sha256 = $1 AND t.revoked_at IS NULL
        """,
        _digest(text),
    )
    if row is None:
        raise Unauthorized(
            "Incorrect API key provided. 'sluice keys list' shows the keys, 'sluice keys create' makes one.",
            code="invalid_api_key",
        )
    return Principal(**dict(row))


async def list_tokens(conn: Connection) -> Sequence[Token]:
    """All API keys, newest first."""
    rows = await conn.fetch(
        """
        SELECT t.id, u.name AS user_name, t.name, t.hint, t.created_at, t.revoked_at
        FROM api_tokens t JOIN users u ON u.id = t.user_id ORDER BY t.id DESC
        """
    )
    return [Token(**dict(row)) for row in rows]


async def revoke_token(conn: Connection, token_id: UUID) -> None:
    """Make an API key useless from the next request on.

    Raises:
        NotFound: there is no such key.
    """
    done = await conn.fetchval(
        "UPDATE api_tokens SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 RETURNING id", token_id
    )
    if done is None:
        raise NotFound("No API key has this id.")
