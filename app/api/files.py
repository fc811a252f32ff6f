"""/v1/files: uploads streamed to the blob store, and what becomes of them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from app.api.callers import Caller, FileId, Meters, Parts
from app.api.multipart import Part, read_parts, refuse_unknown
from app.api.paging import FilePage, list_answer
from app.api.repeats import ThisAttempt
from app.api.uploads import Uploads, discard_blob
from app.api.wire.files import FileAnswer, FileExpiry, UploadFields
from app.api.wire.pages import Deleted, ListAnswer
from app.api.wire.values import Text
from app.db import connection, transaction
from app.errors import BadRequest, TooLarge
from app.ids import to_wire
from app.records.files import (
    FileRecord,
    NewFile,
    blob_key,
    delete_file,
    get_file,
    insert_file,
    list_files,
    lock_files,
)
from app.records.store_files import detach_everywhere
from app.resources import Resources
from app.vector.chunks import delete_chunks

router = APIRouter()

_MOST_OVERHEAD_BYTES = 1024 * 1024
"""Boundaries, part headers and fields of an upload; a body longer than that plus the file's limit is too long."""
_FIELDS = UploadFields.model_fields.keys() | {f"expires_after[{name}]" for name in FileExpiry.model_fields}
_MOST_FIELD_BYTES = 4096


@router.post("/v1/files", response_model_exclude_none=True)
async def create_file(attempt: ThisAttempt, resources: Parts, meters: Meters, request: Request) -> FileAnswer:
    """Store a file. The answer means: its bytes are durable and its row is committed."""
    _require_acceptable_length(request, resources.settings.max_upload_bytes)
    async with Uploads(resources) as uploads:
        new = await _receive_file(request, uploads)
        content = [new.filename, new.purpose, new.expires_after_seconds, new.sha256]
        async with uploads.recording() as conn:
            standing = await attempt.accept(conn, new.id, content)
            if standing != new.id:
                uploads.is_repeated = True
                return FileAnswer.of(await get_file(conn, standing, owner_id=attempt.caller.user_id))
            file = await insert_file(conn, new, owner_id=attempt.caller.user_id)
    meters.note_uploads(files=1, size_bytes=new.size_bytes)
    return FileAnswer.of(file)


@router.get("/v1/files", response_model_exclude_none=True)
async def list_all_files(
    caller: Caller, resources: Parts, page: FilePage, purpose: Annotated[Text | None, Query()] = None
) -> ListAnswer[FileAnswer]:
    """The caller's files."""
    async with connection(resources.pool) as conn:
        found = await list_files(conn, owner_id=caller.user_id, purpose=purpose, page=page)
    return list_answer(found, FileAnswer.of, lambda answer: answer.id)


@router.get("/v1/files/{file_id}", response_model_exclude_none=True)
async def retrieve_file(caller: Caller, resources: Parts, file_id: FileId) -> FileAnswer:
    """One file of the caller's."""
    async with connection(resources.pool) as conn:
        return FileAnswer.of(await get_file(conn, file_id, owner_id=caller.user_id))


@router.delete("/v1/files/{file_id}")
async def delete_one_file(caller: Caller, resources: Parts, file_id: FileId) -> Deleted:
    """Delete a file, its chunks in every vector store, and its bytes."""
    async with transaction(resources.pool) as conn:
        await lock_files(conn, [file_id], owner_id=caller.user_id)
        await delete_chunks(conn, await detach_everywhere(conn, file_id))
        await delete_file(conn, file_id)
    await discard_blob(resources, file_id)
    return Deleted(id=to_wire("file", file_id), object="file")


@router.get("/v1/files/{file_id}/content", response_class=StreamingResponse)
async def read_file_content(caller: Caller, resources: Parts, file_id: FileId) -> StreamingResponse:
    """A file's bytes as they were uploaded."""
    async with connection(resources.pool) as conn:
        file = await get_file(conn, file_id, owner_id=caller.user_id)
    return StreamingResponse(
        await _opened(resources, file_id), media_type="application/octet-stream", headers=_download_headers(file)
    )


def _require_acceptable_length(request: Request, max_upload_bytes: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_upload_bytes + _MOST_OVERHEAD_BYTES:
        raise TooLarge(
            f"The file is larger than this server accepts ({max_upload_bytes} bytes).", code="file_too_large"
        )


async def _receive_file(request: Request, uploads: Uploads) -> NewFile:
    """The one file of an upload, its bytes stored; its fields may stand before or after it."""
    fields: dict[str, object] = {}
    new: NewFile | None = None
    async for part in read_parts(request):
        if part.filename is None and part.name != "file":
            await _add_field(fields, part)
        elif part.filename is None or part.name != "file" or new is not None:
            raise BadRequest("An upload has exactly one file, in the part 'file'.", param=part.name)
        else:
            new = await uploads.store(part)
    if new is None:
        raise BadRequest("The upload has no part 'file'.", param="file", code="missing_required_parameter")
    try:
        given = UploadFields.model_validate(fields)
    except ValidationError as exc:
        problems = [{**each, "loc": ("body", *each["loc"])} for each in exc.errors()]
        raise RequestValidationError(problems, body=fields) from exc
    expires = None if given.expires_after is None else given.expires_after.seconds
    return replace(new, purpose=given.purpose, expires_after_seconds=expires)


async def _add_field(fields: dict[str, object], part: Part) -> None:
    """Put `expires_after[seconds]` where JSON would have it: {"expires_after": {"seconds": …}}."""
    refuse_unknown(part, _FIELDS)
    value = await part.text(most_bytes=_MOST_FIELD_BYTES)
    outer, bracket, inner = part.name.partition("[")
    if not bracket:
        fields[outer] = value
        return
    nested = fields.setdefault(outer, {})
    if isinstance(nested, dict):
        nested[inner.rstrip("]")] = value


async def _opened(resources: Resources, file_id: UUID) -> AsyncIterator[bytes]:
    """The bytes, the first piece already read: a blob that is missing must be an error answer, not half a file."""
    pieces = resources.blobs.read(blob_key(file_id))
    first = await anext(pieces, b"")

    async def all_pieces() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_pieces()


def _download_headers(file: FileRecord) -> dict[str, str]:
    return {
        "Content-Length": str(file.size_bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
