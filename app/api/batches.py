"""/v1/vector_stores/{id}/file_batches: many files attached at once."""

from fastapi import APIRouter

from app.access.grants import require_stores
from app.api.attaching import NewBatch, attach_files, files_to_attach
from app.api.callers import BatchId, Caller, Parts, VectorStoreId
from app.api.paging import StoreFilePage, list_answer
from app.api.repeats import ThisAttempt
from app.api.wire.pages import ListAnswer
from app.api.wire.store_files import BatchAnswer, CreateBatch, StoreFileAnswer
from app.api.wire.values import Status
from app.db import connection, transaction
from app.ids import new_id, to_wire
from app.records.batches import cancel_batch, get_batch
from app.records.ingestions import Hint
from app.records.store_files import list_store_files
from app.ringing import ring

router = APIRouter()


@router.post("/v1/vector_stores/{vector_store_id}/file_batches")
async def create_file_batch(  # noqa: PLR0917 - FastAPI's
    caller: Caller,
    resources: Parts,
    vector_store_id: VectorStoreId,
    body: CreateBatch,
    attempt: ThisAttempt,
) -> BatchAnswer:
    """Queue many files for a vector store in one transaction; a file that is named twice counts once."""
    files = files_to_attach(body.entries(), most=resources.settings.max_files_per_batch)
    batch = NewBatch(new_id(), vector_store_id)
    async with transaction(resources.pool) as conn:
        hints: list[Hint] = []
        standing = await attempt.accept(conn, batch.id)
        if standing == batch.id:
            hints = await attach_files(
                conn, resources.settings, caller, files=files, store_ids=[vector_store_id], batch=batch
            )
        else:
            await require_stores(conn, caller, [vector_store_id], write=True)
        made = await get_batch(conn, standing, vector_store_id=vector_store_id)
    await ring(resources, hints)
    return BatchAnswer.of(made, to_wire("vs", vector_store_id))


@router.get("/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}")
async def retrieve_file_batch(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, batch_id: BatchId
) -> BatchAnswer:
    """How far a batch is."""
    async with connection(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=False)
        batch = await get_batch(conn, batch_id, vector_store_id=vector_store_id)
    return BatchAnswer.of(batch, to_wire("vs", vector_store_id))


@router.post("/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel")
async def cancel_file_batch(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, batch_id: BatchId
) -> BatchAnswer:
    """Cancel what is not settled yet; files that are searchable stay."""
    async with transaction(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=True)
        await get_batch(conn, batch_id, vector_store_id=vector_store_id)
        await cancel_batch(conn, batch_id)
        batch = await get_batch(conn, batch_id, vector_store_id=vector_store_id)
    return BatchAnswer.of(batch, to_wire("vs", vector_store_id))


@router.get("/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/files")
async def list_files_of_batch(
    caller: Caller,
    resources: Parts,
    vector_store_id: VectorStoreId,
    batch_id: BatchId,
    *,
    page: StoreFilePage,
    filter: Status | None = None,  # noqa: A002 - OpenAI's name
) -> ListAnswer[StoreFileAnswer]:
    """The files of a batch."""
    async with connection(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=False)
        await get_batch(conn, batch_id, vector_store_id=vector_store_id)
        found = await list_store_files(conn, store_id=vector_store_id, batch_id=batch_id, status=filter, page=page)
    return list_answer(found, StoreFileAnswer.of, lambda answer: answer.id)
