"""Sluice's own: embedding keys and the sharing of vector stores."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, StrictBool, StringConstraints

from app.access.embedding_keys import EmbeddingKey
from app.access.grants import Grant
from app.api.wire.values import Answer, Name, RequestBody, maybe_unix_seconds, unix_seconds
from app.ids import to_wire


def _sendable(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text.isascii() or not text.isprintable():  # it goes into a header
        raise ValueError("must be printable ASCII")
    return secret


class AddEmbeddingKey(RequestBody):
    """POST /v1/embedding_keys; `base_url` left out is the server's."""

    name: Annotated[Name, StringConstraints(min_length=1)]
    key: Annotated[SecretStr, Field(min_length=1, max_length=4096), AfterValidator(_sendable)]
    base_url: Name | None = None


class EmbeddingKeyAnswer(Answer):
    """An embedding key without the key: that is never shown again."""

    id: str
    object: Literal["embedding_key"] = "embedding_key"
    created_at: int
    name: str
    base_url: str
    revoked_at: int | None

    @classmethod
    def of(cls, key: EmbeddingKey) -> "EmbeddingKeyAnswer":
        """The answer for an embedding key."""
        return cls(
            id=to_wire("ekey", key.id),
            created_at=unix_seconds(key.created_at),
            name=key.name,
            base_url=key.base_url,
            revoked_at=maybe_unix_seconds(key.revoked_at),
        )


class ShareStore(RequestBody):
    """PUT /v1/vector_stores/{id}/shares/{group_name}."""

    may_write: StrictBool = False


class ShareAnswer(Answer):
    """A vector store shared with a group."""

    object: Literal["vector_store.share"] = "vector_store.share"
    vector_store_id: str
    group_name: str
    may_write: bool

    @classmethod
    def of(cls, grant: Grant, vector_store_id: str) -> "ShareAnswer":
        """The answer for a grant."""
        return cls(vector_store_id=vector_store_id, group_name=grant.group_name, may_write=grant.may_write)


class EmbeddingKeyList(Answer):
    """A user's embedding keys, newest first."""

    object: Literal["list"] = "list"
    data: list[EmbeddingKeyAnswer]


class ShareList(Answer):
    """The groups that a vector store is shared with."""

    object: Literal["list"] = "list"
    data: list[ShareAnswer]
