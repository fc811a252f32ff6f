"""/v1/ingestions: the batch upload into any number of vector stores, and how its files are doing."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from app.access.tokens import Principal
from app.api.attaching import FileToAttach, NewBatch, attach_files
from app.api.batch_uploads import BatchUpload, receive_batch
from app.api.callers import Caller, IngestionId, Meters, Parts
from app.api.paging import IngestionPage, list_answer
from app.api.repeats import Attempt, ThisAttempt
from app.api.uploads import Uploads
from app.api.wire.ingestions import BatchUploadAnswer, CancelledBatch, IngestionAnswer, IngestionList
from app.api.wire.values import FileCountsAnswer, Status, chunking_of, unix_seconds
from app.db import Connection, connection, transaction
from app.ids import from_wire, new_id, to_wire
from app.records.batches import cancel_batch, get_batch
from app.records.files import insert_files
from app.records.ingestions import Hint, Ingestion, cancel, get_ingestion, list_ingestions
from app.records.pages import PageRequest
from app.records.store_files import STATUS_STATES
from app.ringing import ring

router = APIRouter()


@router.post("/v1/ingestions", status_code=202, response_model=BatchUploadAnswer)
async def upload_batch(
    attempt: ThisAttempt, resources: Parts, meters: Meters, request: Request
) -> BatchUploadAnswer | JSONResponse:
    """Take many files in one request and queue them all in one transaction.

    The answer means: the bytes of every file in `data` are durable. Files in `rejected` were empty or too long.
    """
    async with Uploads(resources) as uploads:
        upload = await receive_batch(request, uploads, most_files=resources.settings.max_files_per_batch)
        store_ids = [from_wire("vs", text) for text in upload.fields().vector_store_ids]
        if not upload.accepted:
            first = upload.rejected[0]
            rejected = [each.model_dump() for each in upload.rejected]
            return JSONResponse({"error": first.error, "rejected": rejected}, upload.status)
        answer, hints = await _record(uploads, attempt, upload, store_ids)
        if uploads.is_repeated:
            return answer
    await ring(resources, hints)
    meters.note_uploads(files=len(upload.accepted), size_bytes=uploads.stored_bytes)
    return answer


@router.get("/v1/ingestions")
async def list_all_ingestions(
    caller: Caller,
    resources: Parts,
    *,
    page: IngestionPage,
    batch_id: Annotated[str | None, Query()] = None,
    status: Annotated[Status | None, Query()] = None,
) -> IngestionList:
    """The caller's ingestions; with `batch_id`, those of one batch, and the counts of all of it."""
    batch_uuid = None if batch_id is None else from_wire("vsfb", batch_id)
    states = None if status is None else STATUS_STATES[status]
    counts: FileCountsAnswer | None = None
    async with connection(resources.pool) as conn:
        if batch_uuid is not None:
            batch = await get_batch(conn, batch_uuid, owner_id=caller.user_id)
            counts = FileCountsAnswer(**asdict(batch.counts))
        found = await list_ingestions(conn, user_id=caller.user_id, batch_id=batch_uuid, states=states, page=page)
    answer = list_answer(found, IngestionAnswer.of, lambda each: each.id)
    return IngestionList(**dict(answer), file_counts=counts)


@router.get("/v1/ingestions/{ingestion_id}")
async def retrieve_ingestion(caller: Caller, resources: Parts, ingestion_id: IngestionId) -> IngestionAnswer:
    """How far a file is: stage, progress, attempts, error."""
    async with connection(resources.pool) as conn:
        return IngestionAnswer.of(await get_ingestion(conn, ingestion_id, user_id=caller.user_id))


@router.post("/v1/ingestions/cancel")
async def cancel_batch_of_ingestions(
    caller: Caller, resources: Parts, batch_id: Annotated[str, Query()]
) -> CancelledBatch:
    """Cancel what is not settled of one of the caller's batches, whichever vector stores it goes to."""
    batch_uuid = from_wire("vsfb", batch_id)
    async with transaction(resources.pool) as conn:
        await get_batch(conn, batch_uuid, owner_id=caller.user_id)
        await cancel_batch(conn, batch_uuid)
        batch = await get_batch(conn, batch_uuid, owner_id=caller.user_id)
    return CancelledBatch(id=to_wire("vsfb", batch.id), file_counts=FileCountsAnswer(**asdict(batch.counts)))


@router.post("/v1/ingestions/{ingestion_id}/cancel")
async def cancel_ingestion(caller: Caller, resources: Parts, ingestion_id: IngestionId) -> IngestionAnswer:
    """Cancel an ingestion that is not settled; one that is stays as it is."""
    async with transaction(resources.pool) as conn:
        await get_ingestion(conn, ingestion_id, user_id=caller.user_id)
        await cancel(conn, ingestion_id)
        return IngestionAnswer.of(await get_ingestion(conn, ingestion_id, user_id=caller.user_id))


async def _record(
    uploads: Uploads, attempt: Attempt, upload: BatchUpload, store_ids: Sequence[UUID]
) -> tuple[BatchUploadAnswer, list[Hint]]:
    """One transaction: files, batch, ingestions, attachments; and the answer as of its commit. If the same request
    came before, nothing of it: the answer shows that one's batch.
    """
    caller, fields = attempt.caller, upload.fields()
    chunking = chunking_of(fields.chunking_strategy)
    files = [FileToAttach(new.id, chunking, fields.attributes or {}) for new in upload.accepted]
    batch = NewBatch(new_id(), store_ids[0] if len(store_ids) == 1 else None)
    async with uploads.recording() as conn:
        hints: list[Hint] = []
        standing = await attempt.accept(conn, batch.id, upload.content())
        if standing == batch.id:
            await insert_files(conn, upload.accepted, owner_id=caller.user_id)
            settings = uploads.resources.settings
            hints = await attach_files(conn, settings, caller, files=files, store_ids=store_ids, batch=batch)
        else:
            uploads.is_repeated = True
        made = await get_batch(conn, standing, owner_id=caller.user_id)
        ingestions = await _in_order(conn, caller, standing, upload)
    answer = BatchUploadAnswer(
        id=to_wire("vsfb", standing),
        created_at=unix_seconds(made.created_at),
        vector_store_ids=[to_wire("vs", store_id) for store_id in store_ids],
        file_counts=FileCountsAnswer(**asdict(made.counts)),
        data=[IngestionAnswer.of(ingestion) for ingestion in ingestions],
        rejected=upload.rejected,
    )
    return answer, hints


async def _in_order(conn: Connection, caller: Principal, batch_id: UUID, upload: BatchUpload) -> list[Ingestion]:
    """A batch's ingestions in the order of the files; ids made within a millisecond are in none."""
    page = PageRequest(limit=len(upload.accepted))
    found = await list_ingestions(conn, user_id=caller.user_id, batch_id=batch_id, states=None, page=page)
    by_id = {new.id: number for number, new in enumerate(upload.accepted)}
    by_name = {new.filename: number for number, new in enumerate(upload.accepted)}  # of a batch that came before
    return sorted(found.rows, key=lambda each: by_id.get(each.file_id, by_name.get(each.filename, 0)))
