"""/v1/vector_stores: create, list, retrieve, update, delete."""

from fastapi import APIRouter

from app.access.grants import VISIBLE_STORES, require_store_owner, require_stores
from app.api.attaching import attach_files, files_to_attach
from app.api.callers import Caller, Parts, VectorStoreId
from app.api.paging import VectorStorePage, list_answer
from app.api.repeats import ThisAttempt
from app.api.wire.pages import Deleted, ListAnswer
from app.api.wire.store_files import AttachFile
from app.api.wire.values import chunking_of
from app.api.wire.vector_stores import (
    MOST_FILES_AT_CREATION,
    CreateVectorStore,
    EmbeddingChoice,
    UpdateVectorStore,
    VectorStoreAnswer,
)
from app.db import connection, transaction
from app.embedding import EmbeddingModel
from app.errors import BadRequest
from app.ids import new_id, to_wire
from app.records.store_files import detach_all, detach_unsettled
from app.records.vector_stores import (
    NewVectorStore,
    delete_store,
    get_store,
    insert_store,
    list_stores,
    lock_store_for_deletion,
    update_store,
)
from app.ringing import ring
from app.settings import LOCAL_DIMENSIONS, LOCAL_MODEL, USUAL_DIMENSIONS, Settings
from app.vector.chunks import delete_store_chunks
from app.vector.shards import ensure_shard

router = APIRouter()


@router.post("/v1/vector_stores")
async def create_vector_store(
    caller: Caller, resources: Parts, body: CreateVectorStore, attempt: ThisAttempt
) -> VectorStoreAnswer:
    """Make a vector store, and queue its first files if there are any."""
    model = choose_model(resources.settings, body.embedding)
    chunking_of(body.chunking_strategy)  # refused also where there is no file to chunk
    files = files_to_attach(
        [
            AttachFile.model_construct(file_id=file_id, chunking_strategy=body.chunking_strategy, attributes=None)
            for file_id in body.file_ids
        ],
        most=MOST_FILES_AT_CREATION,
    )
    store_id = new_id()
    async with transaction(resources.pool) as conn:
        standing = await attempt.accept(conn, store_id)
        if standing != store_id:
            return VectorStoreAnswer.of(await get_store(conn, standing))
        new = NewVectorStore(
            id=store_id,
            name=body.name,
            metadata=body.metadata or {},
            model=model.name,
            dimensions=model.dimensions,
            shard=await ensure_shard(conn, model.dimensions),
            expires_after_days=None if body.expires_after is None else body.expires_after.days,
        )
        await insert_store(conn, new, owner_id=caller.user_id)
        hints = (
            await attach_files(conn, resources.settings, caller, files=files, store_ids=[store_id]) if files else []
        )
        store = await get_store(conn, store_id)
    await ring(resources, hints)
    return VectorStoreAnswer.of(store)


@router.get("/v1/vector_stores")
async def list_vector_stores(
    caller: Caller, resources: Parts, page: VectorStorePage
) -> ListAnswer[VectorStoreAnswer]:
    """The vector stores that the caller owns or that are shared with the caller's groups."""
    async with connection(resources.pool) as conn:
        found = await list_stores(conn, visible=VISIBLE_STORES, user_id=caller.user_id, page=page)
    return list_answer(found, VectorStoreAnswer.of, lambda answer: answer.id)


@router.get("/v1/vector_stores/{vector_store_id}")
async def retrieve_vector_store(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId
) -> VectorStoreAnswer:
    """One vector store with its counts."""
    async with connection(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=False)
        return VectorStoreAnswer.of(await get_store(conn, vector_store_id))


@router.post("/v1/vector_stores/{vector_store_id}")
async def update_vector_store(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, body: UpdateVectorStore
) -> VectorStoreAnswer:
    """Change name, metadata or expiry; null clears, what is left out stays."""
    async with transaction(resources.pool) as conn:
        await require_stores(conn, caller, [vector_store_id], write=True)
        if "expires_after" in body.model_fields_set:  # which deletes it in the end
            await require_store_owner(conn, caller, vector_store_id)
        await update_store(conn, vector_store_id, _changes(body))
        return VectorStoreAnswer.of(await get_store(conn, vector_store_id))


@router.delete("/v1/vector_stores/{vector_store_id}")
async def delete_vector_store(caller: Caller, resources: Parts, vector_store_id: VectorStoreId) -> Deleted:
    """Delete a vector store with its chunks; the files stay."""
    async with transaction(resources.pool) as conn:
        await require_store_owner(conn, caller, vector_store_id)
        await detach_unsettled(conn, vector_store_id)
    async with transaction(resources.pool) as conn:
        await require_store_owner(conn, caller, vector_store_id)
        space = await lock_store_for_deletion(conn, vector_store_id)
        await detach_all(conn, vector_store_id)
        await delete_store_chunks(conn, shard=space.shard, store_id=vector_store_id)
        await delete_store(conn, vector_store_id)
    return Deleted(id=to_wire("vs", vector_store_id), object="vector_store.deleted")


def choose_model(settings: Settings, choice: EmbeddingChoice | None) -> EmbeddingModel:
    """The model of a new vector store: the server's, unless the request chooses one.

    Raises:
        BadRequest: this server cannot run the model, or its dimensions are unknown or impossible.
    """
    if choice is None:
        return EmbeddingModel(settings.rag_embedding_model, settings.rag_embedding_dimensions)
    if settings.rag_embedding_engine == "local" and choice.model != LOCAL_MODEL:
        raise BadRequest(
            f"This server embeds with its built-in model only: leave 'embedding' out or ask for '{LOCAL_MODEL}' "
            "(RAG_EMBEDDING_ENGINE=openai allows others).",
            param="embedding.model",
            code="model_not_available",
        )
    known = {**USUAL_DIMENSIONS, settings.rag_embedding_model: settings.rag_embedding_dimensions}
    dimensions = choice.dimensions or known.get(choice.model)
    if dimensions is None:
        raise BadRequest(
            "Give 'embedding.dimensions': this server does not know how wide this model's vectors are.",
            param="embedding.dimensions",
            code="missing_required_parameter",
        )
    if choice.model == LOCAL_MODEL and dimensions != LOCAL_DIMENSIONS:
        raise BadRequest(
            f"'{LOCAL_MODEL}' has {LOCAL_DIMENSIONS} dimensions and no other number.", param="embedding.dimensions"
        )
    return EmbeddingModel(choice.model, dimensions)


def _changes(body: UpdateVectorStore) -> dict[str, object]:
    changes: dict[str, object] = {}
    if "name" in body.model_fields_set:
        changes["name"] = body.name
    if "metadata" in body.model_fields_set:
        changes["metadata"] = body.metadata or {}
    if "expires_after" in body.model_fields_set:
        changes["expires_after_days"] = None if body.expires_after is None else body.expires_after.days
    return changes
