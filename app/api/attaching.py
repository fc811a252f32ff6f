"""Attaching files to vector stores: everything in the caller's transaction, then one ring of the doorbell."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from app.access.embedding_keys import resolve_embedding_key
from app.access.grants import require_stores
from app.access.tokens import Principal
from app.api.wire.store_files import AttachFile
from app.api.wire.values import chunking_of
from app.db import Connection
from app.embedding import EmbeddingModel
from app.errors import BadRequest
from app.extraction import Chunking
from app.ids import from_wire, new_id
from app.records.batches import insert_batch
from app.records.files import lock_files
from app.records.ingestions import Hint, NewIngestion, insert_ingestions
from app.records.store_files import attach
from app.records.vector_stores import lock_stores, note_activity
from app.settings import Settings
from app.vector.chunks import delete_chunks


@dataclass(frozen=True, slots=True)
class FileToAttach:
    """A file on its way into vector stores."""

    file_id: UUID
    chunking: Chunking
    attributes: dict[str, str | float | bool] = field(default_factory=dict)
    ingestion_id: UUID = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class NewBatch:
    """The batch that the ingestions are to belong to; `vector_store_id` None where they go into several stores."""

    id: UUID
    vector_store_id: UUID | None


def files_to_attach(entries: Sequence[AttachFile], *, most: int) -> list[FileToAttach]:
    """What a request asks for, each file once: the last entry of a file counts.

    Raises:
        BadRequest: more than `most` files, or chunk sizes out of their limits.
        NotFound: an id that is not a file's.
    """
    if len(entries) > most:
        raise BadRequest(f"At most {most} files may be attached at once.", code="too_many_files", param="file_ids")
    wanted: dict[UUID, FileToAttach] = {}
    for entry in entries:
        file_id = from_wire("file", entry.file_id)
        wanted[file_id] = FileToAttach(file_id, chunking_of(entry.chunking_strategy), entry.attributes or {})
    return list(wanted.values())


async def attach_files(
    conn: Connection,
    settings: Settings,
    caller: Principal,
    *,
    files: Sequence[FileToAttach],
    store_ids: Sequence[UUID],
    batch: NewBatch | None = None,
) -> list[Hint]:
    """Queue the files for every one of the stores; the hints are for `app.ringing.ring`, after the commit.

    Raises:
        NotFound, Forbidden: a store or file that the caller may not use.
        BadRequest: no embedding key pays for it.
    """
    await require_stores(conn, caller, store_ids, write=True)
    spaces = await lock_stores(conn, store_ids)
    await lock_files(conn, [file.file_id for file in files], owner_id=caller.user_id)
    models = {EmbeddingModel(space.model, space.dimensions) for space in spaces}
    key_id = await paying_key(conn, settings, caller, models)
    if batch is not None:
        await insert_batch(conn, batch.id, owner_id=caller.user_id, vector_store_id=batch.vector_store_id)
    news = [
        NewIngestion(
            id=file.ingestion_id,
            file_id=file.file_id,
            attributes=file.attributes,
            max_chunk_size_tokens=file.chunking.max_chunk_size_tokens,
            chunk_overlap_tokens=file.chunking.chunk_overlap_tokens,
        )
        for file in files
    ]
    hints = await insert_ingestions(
        conn,
        news,
        user_id=caller.user_id,
        batch_id=None if batch is None else batch.id,
        embedding_key_id=key_id,
        most_hints=settings.hints_a_user,
    )
    await delete_chunks(conn, await attach(conn, news, store_ids))
    await note_activity(conn, store_ids)
    return hints


async def paying_key(
    conn: Connection, settings: Settings, caller: Principal, models: set[EmbeddingModel]
) -> UUID | None:
    """The embedding key for work on these models; None where none is needed, or the server's own pays.

    Raises:
        BadRequest: nobody pays (`no_embedding_key`).
    """
    if all(model.is_local for model in models):
        return None
    return await resolve_embedding_key(
        conn, user_id=caller.user_id, server_has_default=settings.rag_openai_api_key is not None
    )
