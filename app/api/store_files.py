"""/v1/vector_stores/{id}/files: attach, list, retrieve, update, detach, read."""

from fastapi import APIRouter

from app.access.grants import require_stores
from app.api.attaching import attach_files, files_to_attach
from app.api.callers import Caller, FileId, Parts, VectorStoreId
from app.api.paging import StoreFilePage, list_answer
from app.api.repeats import ThisAttempt
from app.api.wire.pages import Deleted, ListAnswer
from app.api.wire.store_files import AttachFile, ContentAnswer, ContentPiece, StoreFileAnswer, UpdateAttributes
from app.api.wire.values import Status
from app.db import connection, transaction
from app.ids import to_wire
from app.records.ingestions import Hint
from app.records.store_files import detach, get_store_file, list_store_files, update_attributes
from app.records.vector_stores import read_space
from app.ringing import ring
from app.vector.chunks import delete_chunks, read_texts

router = APIRouter()


@router.post("/v1/vector_stores/{vector_store_id}/files")
async def attach_one_file(  # noqa: PLR0917 - FastAPI's
    caller: Caller,
    resources: Parts,
    vector_store_id: VectorStoreId,
    body: AttachFile,
    attempt: ThisAttempt,
) -> StoreFileAnswer:
    """Queue a file for a vector store; attaching it again replaces what is there."""
    files = files_to_attach([body], most=1)
    ingestion_id = files[0].ingestion_id  # an attachment has no id of its own
    async with transaction(resources.pool) as conn:
        hints: list[Hint] = []
        if await attempt.accept(conn, ingestion_id) == ingestion_id:
            hints = await attach_files(conn, resources.settings, caller, files=files, store_ids=[vector_store_id])
        else:
            await require_stores(conn, caller, [vector_store_id], write=True)
        attached = await get_store_file(conn, store_id=vector_store_id, file_id=files[0].file_id)
    await ring(resources, hints)
    return StoreFileAnswer.of(attached)


@router.get("/v1/vector_stores/{vector_store_id}/files")
async def list_files_of_store(
    caller: Caller,
    resources: Parts,
    vector_store_id: VectorStoreId,
    *,
    page: StoreFilePage,
    filter: Status | None = None,  # noqa: A002 - OpenAI's name
) -> ListAnswer[StoreFileAnswer]:
    """The files of a vector store, by when they were attached."""
    async with connection(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=False)
        found = await list_store_files(conn, store_id=vector_store_id, batch_id=None, status=filter, page=page)
    return list_answer(found, StoreFileAnswer.of, lambda answer: answer.id)


@router.get("/v1/vector_stores/{vector_store_id}/files/{file_id}")
async def retrieve_file_of_store(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, file_id: FileId
) -> StoreFileAnswer:
    """A file in a vector store and its status."""
    async with connection(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=False)
        return StoreFileAnswer.of(await get_store_file(conn, store_id=vector_store_id, file_id=file_id))


@router.post("/v1/vector_stores/{vector_store_id}/files/{file_id}")
async def update_file_of_store(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, file_id: FileId, *, body: UpdateAttributes
) -> StoreFileAnswer:
    """Replace a file's attributes in a vector store."""
    async with transaction(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=True)
        attributes = body.attributes or {}
        await update_attributes(conn, store_id=vector_store_id, file_id=file_id, attributes=attributes)
        return StoreFileAnswer.of(await get_store_file(conn, store_id=vector_store_id, file_id=file_id))


@router.delete("/v1/vector_stores/{vector_store_id}/files/{file_id}")
async def detach_one_file(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, file_id: FileId
) -> Deleted:
    """Take a file out of a vector store; the file itself stays."""
    async with transaction(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=True)
        await delete_chunks(conn, await detach(conn, store_id=vector_store_id, file_id=file_id))
    return Deleted(id=to_wire("file", file_id), object="vector_store.file.deleted")


@router.get("/v1/vector_stores/{vector_store_id}/files/{file_id}/content")
async def read_content_of_store_file(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, file_id: FileId
) -> ContentAnswer:
    """The text that was made of a file, chunk by chunk."""
    async with connection(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=False)
        space = await read_space(conn, vector_store_id)
        await get_store_file(conn, store_id=vector_store_id, file_id=file_id)
        texts = await read_texts(conn, shard=space.shard, store_id=vector_store_id, file_id=file_id)
    return ContentAnswer(data=[ContentPiece(text=text) for text in texts])
