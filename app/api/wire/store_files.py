"""Files in vector stores, and batches of them."""

from dataclasses import asdict
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from app.api.wire.values import (
    Answer,
    Attributes,
    ChunkingStrategy,
    FileCountsAnswer,
    RequestBody,
    StaticChunkingAnswer,
    Text,
    unix_seconds,
)
from app.ids import to_wire
from app.records.batches import Batch
from app.records.store_files import StoreFile

OpenAIErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]

_FILE_IS_AT_FAULT = {
    "unreadable_file",
    "encrypted_file",
    "empty_text",
    "too_much_text",
    "too_many_pages",
    "too_many_tokens",
    "unpacks_too_large",
    "parser_memory",
    "parser_timeout",
    "parser_crashed",
    "poison",
}


class AttachFile(RequestBody):
    """POST /v1/vector_stores/{id}/files, and an entry of a batch's `files`."""

    file_id: Text
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class CreateBatch(RequestBody):
    """POST /v1/vector_stores/{id}/file_batches: `file_ids` or `files`, one of the two."""

    file_ids: Annotated[list[Text], Field(min_length=1)] | None = None
    files: Annotated[list[AttachFile], Field(min_length=1)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("give either 'file_ids' or 'files'")
        return self

    def entries(self) -> list[AttachFile]:
        """Each file with its attributes and chunking; those of the batch hold for `file_ids` only."""
        if self.files is not None:
            return self.files
        return [
            AttachFile.model_construct(
                file_id=file_id, attributes=self.attributes, chunking_strategy=self.chunking_strategy
            )
            for file_id in self.file_ids or ()
        ]


class UpdateAttributes(RequestBody):
    """POST /v1/vector_stores/{id}/files/{file_id}; null empties them."""

    attributes: Attributes | None


class LastError(Answer):
    """Why a file failed: OpenAI's coarse code, and Sluice's own as `reason` and before the message."""

    code: OpenAIErrorCode
    message: str
    reason: str

    @classmethod
    def of(cls, failure: str, message: str | None) -> "LastError":
        """The answer for one of our failure codes."""
        return cls(code=_openai_code(failure), message=f"{failure}: {message or ''}", reason=failure)


def _openai_code(failure: str) -> OpenAIErrorCode:
    if failure == "unsupported_file":
        return "unsupported_file"
    return "invalid_file" if failure in _FILE_IS_AT_FAULT else "server_error"


class StoreFileAnswer(Answer):
    """OpenAI's vector store file object, with the id of the ingestion behind it."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    status: str
    last_error: LastError | None
    usage_bytes: int
    attributes: dict[str, str | int | float | bool]
    chunking_strategy: StaticChunkingAnswer
    ingestion_id: str

    @classmethod
    def of(cls, file: StoreFile) -> "StoreFileAnswer":
        """The answer for a file in a vector store."""
        failure = file.error_code if file.state == "failed" else None
        return cls(
            id=to_wire("file", file.file_id),
            created_at=unix_seconds(file.created_at),
            vector_store_id=to_wire("vs", file.vector_store_id),
            status=file.status,
            last_error=None if failure is None else LastError.of(failure, file.error_message),
            usage_bytes=file.usage_bytes,
            attributes=file.attributes,
            chunking_strategy=StaticChunkingAnswer.of(file.max_chunk_size_tokens, file.chunk_overlap_tokens),
            ingestion_id=to_wire("ing", file.ingestion_id),
        )


class BatchAnswer(Answer):
    """OpenAI's vector store file batch object."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: str
    file_counts: FileCountsAnswer

    @classmethod
    def of(cls, batch: Batch, vector_store_id: str) -> "BatchAnswer":
        """The answer for a batch into one store."""
        return cls(
            id=to_wire("vsfb", batch.id),
            created_at=unix_seconds(batch.created_at),
            vector_store_id=vector_store_id,
            status=batch.status,
            file_counts=FileCountsAnswer(**asdict(batch.counts)),
        )


class ContentPiece(Answer):
    """A chunk's text."""

    type: Literal["text"] = "text"
    text: str


class ContentAnswer(Answer):
    """A file's parsed text, chunk by chunk."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[ContentPiece]
    has_more: Literal[False] = False
    next_page: None = None
