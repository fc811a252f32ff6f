"""From an embedding key's id to what an embeddings call is made with; used when searching and when ingesting."""

from uuid import UUID

from app.access.embedding_keys import open_embedding_key
from app.db import Connection
from app.embedding import EmbeddingCredential, EmbeddingModel
from app.errors import Unprocessable
from app.settings import Settings

SERVER_KEY_ID = "server"


async def credential_for(
    conn: Connection, model: EmbeddingModel, key_id: UUID | None, settings: Settings
) -> EmbeddingCredential | None:
    """The credential for a model; None for the local one, which needs none. `key_id` None is the server's key.

    Raises:
        Unprocessable: `key_revoked`, or `no_embedding_key` where the server's default is gone.
    """
    if model.is_local:
        return None
    if key_id is not None:
        key = await open_embedding_key(conn, key_id, settings.key_encryption_key)
        return EmbeddingCredential(str(key.id), key.base_url, key.secret)
    if settings.rag_openai_api_key is None:
        raise Unprocessable(
            "no_embedding_key",
            f"The model '{model.name}' needs an embedding key, and the server has no default (RAG_OPENAI_API_KEY).",
        )
    return EmbeddingCredential(SERVER_KEY_ID, settings.rag_openai_api_base_url, settings.rag_openai_api_key)
