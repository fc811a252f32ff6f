"""Vector stores."""

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field

from app.api.wire.values import (
    Answer,
    ChunkingStrategy,
    FileCountsAnswer,
    Metadata,
    Name,
    RequestBody,
    Text,
    maybe_unix_seconds,
    unix_seconds,
)
from app.ids import to_wire
from app.records.vector_stores import VectorStore

MOST_FILES_AT_CREATION = 500


class StoreExpiry(RequestBody):
    """When a vector store expires, counted from its last use."""

    anchor: Literal["last_active_at"] = "last_active_at"
    days: Annotated[int, Field(ge=1, le=365)]


class EmbeddingChoice(RequestBody):
    """Sluice's own: the model of a new vector store, and the width of its vectors if the model leaves a choice."""

    model: Annotated[Name, Field(min_length=1)]
    dimensions: Annotated[int, Field(ge=1, le=16_000)] | None = None


class CreateVectorStore(RequestBody):
    """POST /v1/vector_stores."""

    name: Name | None = None
    description: Text | None = None  # newer SDKs send it; it is accepted and not kept
    file_ids: Annotated[list[Text], Field(max_length=MOST_FILES_AT_CREATION)] = Field(default_factory=list)
    metadata: Metadata | None = None
    expires_after: StoreExpiry | None = None
    chunking_strategy: ChunkingStrategy | None = None
    embedding: EmbeddingChoice | None = None


class UpdateVectorStore(RequestBody):
    """POST /v1/vector_stores/{id}: what is left out stays as it is."""

    name: Name | None = None
    metadata: Metadata | None = None
    expires_after: StoreExpiry | None = None


class EmbeddingAnswer(Answer):
    """The model and width that a vector store has for life."""

    model: str
    dimensions: int


class VectorStoreAnswer(Answer):
    """OpenAI's vector store object, with Sluice's `embedding`."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    usage_bytes: int
    file_counts: FileCountsAnswer
    status: Literal["expired", "in_progress", "completed"]
    expires_after: StoreExpiry | None
    expires_at: int | None
    last_active_at: int
    metadata: dict[str, str]
    embedding: EmbeddingAnswer

    @classmethod
    def of(cls, store: VectorStore) -> "VectorStoreAnswer":
        """The answer for a vector store."""
        days = store.expires_after_days
        return cls(
            id=to_wire("vs", store.id),
            created_at=unix_seconds(store.created_at),
            name=store.name or "",  # the contract knows no null here
            usage_bytes=store.usage_bytes,
            file_counts=FileCountsAnswer(**asdict(store.counts)),
            status=_status(store),
            expires_after=None if days is None else StoreExpiry(days=days),
            expires_at=maybe_unix_seconds(store.expires_at),
            last_active_at=unix_seconds(store.last_active_at),
            metadata=store.metadata,
            embedding=EmbeddingAnswer(model=store.model, dimensions=store.dimensions),
        )


def _status(store: VectorStore) -> Literal["expired", "in_progress", "completed"]:
    if store.is_expired:
        return "expired"
    return "in_progress" if store.counts.in_progress else "completed"
