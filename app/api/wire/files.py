"""Uploaded files."""

from typing import Annotated, Literal

from pydantic import Field, StrictStr

from app.api.wire.values import Answer, RequestBody, maybe_unix_seconds, unix_seconds
from app.ids import to_wire
from app.records.files import FileRecord

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class FileExpiry(RequestBody):
    """When a file expires, counted from its upload."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class UploadFields(RequestBody):
    """What comes beside the bytes of an upload."""

    purpose: Purpose
    expires_after: FileExpiry | None = None


class FileAnswer(Answer):
    """OpenAI's file object."""

    id: StrictStr
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: FileRecord) -> "FileAnswer":
        """The answer for a file."""
        return cls(
            id=to_wire("file", file.id),
            bytes=file.size_bytes,
            created_at=unix_seconds(file.created_at),
            expires_at=maybe_unix_seconds(file.expires_at),
            filename=file.filename,
            purpose=file.purpose,
        )
