"""/v1/embedding_keys: keys that users bring along; sealed at rest, never shown again."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends

from app.access.embedding_keys import (
    add_embedding_key,
    get_embedding_key,
    list_embedding_keys,
    revoke_embedding_key,
)
from app.access.sealing import keyed_digest
from app.api.callers import Caller, Parts
from app.api.repeats import ThisAttempt
from app.api.wire.pages import Deleted
from app.api.wire.sharing import AddEmbeddingKey, EmbeddingKeyAnswer, EmbeddingKeyList
from app.db import connection, transaction
from app.errors import BadRequest
from app.ids import from_wire, new_id, to_wire
from app.settings import Settings

router = APIRouter()


def _key_id(embedding_key_id: str) -> UUID:
    return from_wire("ekey", embedding_key_id)


EmbeddingKeyId = Annotated[UUID, Depends(_key_id)]


@router.post("/v1/embedding_keys", status_code=201)
async def create_embedding_key(
    caller: Caller, resources: Parts, body: AddEmbeddingKey, attempt: ThisAttempt
) -> EmbeddingKeyAnswer:
    """Keep an embedding key of the caller's: from now on it pays for the caller's files."""
    base_url = _allowed_base_url(resources.settings, body.base_url)
    kek, key_id = resources.settings.key_encryption_key, new_id()
    # not the body: its plain digest would tell whoever reads the table whether a guess at the key is right
    content = [body.name, base_url, keyed_digest(body.key, kek) if kek else None]
    async with transaction(resources.pool) as conn:
        standing = await attempt.accept(conn, key_id, content)
        if standing != key_id:
            return EmbeddingKeyAnswer.of(await get_embedding_key(conn, standing, owner_id=caller.user_id))
        key = await add_embedding_key(
            conn,
            owner_id=caller.user_id,
            name=body.name,
            base_url=base_url,
            secret=body.key,
            kek=kek,
            key_id=key_id,
        )
    return EmbeddingKeyAnswer.of(key)


@router.get("/v1/embedding_keys")
async def list_own_embedding_keys(caller: Caller, resources: Parts) -> EmbeddingKeyList:
    """The caller's embedding keys, newest first, revoked ones included."""
    async with connection(resources.pool) as conn:
        keys = await list_embedding_keys(conn, caller.user_id)
    return EmbeddingKeyList(data=[EmbeddingKeyAnswer.of(key) for key in keys])


@router.delete("/v1/embedding_keys/{embedding_key_id}")
async def delete_embedding_key(caller: Caller, resources: Parts, embedding_key_id: EmbeddingKeyId) -> Deleted:
    """Revoke a key at once: files that count on it fail with `key_revoked`."""
    async with transaction(resources.pool) as conn:
        await revoke_embedding_key(conn, owner_id=caller.user_id, key_id=embedding_key_id)
    return Deleted(id=to_wire("ekey", embedding_key_id), object="embedding_key.deleted")


def _allowed_base_url(settings: Settings, given: str | None) -> str:
    wanted = (settings.rag_openai_api_base_url if given is None else given).rstrip("/")
    if wanted not in settings.allowed_base_urls:
        raise BadRequest(
            "This server does not call that base URL; RAG_OPENAI_ALLOWED_BASE_URLS lists those it does.",
            param="base_url",
            code="base_url_not_allowed",
        )
    return wanted
