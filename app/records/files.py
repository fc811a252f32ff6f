"""Uploaded files; a row exists only for bytes that are already durable in the blob store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.db import Connection
from app.errors import NotFound
from app.ids import to_wire
from app.records.pages import Page, PageRequest, make_page, page_clause

_COLUMNS = "id, owner_id, filename, purpose, media_type, size_bytes, sha256, created_at, expires_at"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """An uploaded file."""

    id: UUID
    owner_id: UUID
    filename: str
    purpose: str
    media_type: str | None
    size_bytes: int
    sha256: bytes
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is known of a file once its bytes are stored."""

    id: UUID
    filename: str
    purpose: str
    media_type: str | None
    size_bytes: int
    sha256: bytes
    expires_after_seconds: int | None = None


def blob_key(file_id: UUID) -> str:
    """Where in the blob store a file's bytes lie."""
    return f"files/{file_id.hex}"


def file_id_of_blob(key: str) -> UUID | None:
    """Whose bytes a key leads to; None for one that is not ours."""
    folder, _, name = key.rpartition("/")
    try:
        return UUID(name) if folder == "files" and len(name) == len(UUID(int=0).hex) else None
    except ValueError:
        return None


async def insert_file(conn: Connection, new: NewFile, *, owner_id: UUID) -> FileRecord:
    """Record an upload."""
    row = await conn.fetchrow(
        f"""
        INSERT INTO files (id, owner_id, filename, purpose, media_type, size_bytes, sha256, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8)) RETURNING {_COLUMNS}
        """,
        new.id,
        owner_id,
        new.filename,
        new.purpose,
        new.media_type,
        new.size_bytes,
        new.sha256,
        new.expires_after_seconds,
    )
    return FileRecord(**dict(row or {}))


async def insert_files(conn: Connection, news: Sequence[NewFile], *, owner_id: UUID) -> None:
    """Record many uploads in one statement; they do not expire."""
    await conn.execute(
        """
        INSERT INTO files (id, owner_id, filename, purpose, media_type, size_bytes, sha256)
        SELECT n.id, $1, n.filename, n.purpose, n.media_type, n.size_bytes, n.sha256
        FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bytea[])
            AS n (id, filename, purpose, media_type, size_bytes, sha256)
        """,
        owner_id,
        [new.id for new in news],
        [new.filename for new in news],
        [new.purpose for new in news],
        [new.media_type for new in news],
        [new.size_bytes for new in news],
        [new.sha256 for new in news],
    )


async def existing_file_ids(conn: Connection, file_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the ids that have a row."""
    rows = await conn.fetch("SELECT id FROM files WHERE id = ANY($1)", file_ids)
    return {row["id"] for row in rows}


async def get_file(conn: Connection, file_id: UUID, *, owner_id: UUID | None) -> FileRecord:
    """A file; `owner_id` None asks as the service itself.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    row = await conn.fetchrow(
        f"SELECT {_COLUMNS} FROM files WHERE id = $1 AND ($2::uuid IS NULL OR owner_id = $2)",
        file_id,
        owner_id,
    )
    if row is None:
        raise NotFound(f"No file found with id '{to_wire('file', file_id)}'.", code="not_found")
    return FileRecord(**dict(row))


async def lock_files(conn: Connection, file_ids: Sequence[UUID], *, owner_id: UUID) -> None:
    """Pass if all of these files exist and are this user's; none is attached or deleted elsewhere meanwhile.

    Rivals: a deletion, and another attachment of the same file. Whoever attaches or deletes takes these locks
    before those of the ingestions.

    Raises:
        NotFound: names the first that is not.
    """
    rows = await conn.fetch(
        "SELECT id FROM files WHERE id = ANY($1) AND owner_id = $2 ORDER BY id FOR NO KEY UPDATE",
        file_ids,
        owner_id,
    )
    found = {row["id"] for row in rows}
    for file_id in file_ids:
        if file_id not in found:
            raise NotFound(f"No file found with id '{to_wire('file', file_id)}'.", code="not_found")


async def expired_files(conn: Connection, *, skip: Sequence[UUID], limit: int) -> list[UUID]:
    """Those whose time has come, but for `skip`."""
    rows = await conn.fetch(
        "SELECT id FROM files WHERE expires_at < now() AND id <> ALL($1) ORDER BY expires_at LIMIT $2", skip, limit
    )
    return [row["id"] for row in rows]


async def lock_expired_file(conn: Connection, file_id: UUID) -> bool:
    """As `lock_files` for one whose time has come; False if a rival holds it, or has deleted it."""
    found = await conn.fetchval(
        "SELECT id FROM files WHERE id = $1 AND expires_at < now() FOR NO KEY UPDATE SKIP LOCKED", file_id
    )
    return found is not None


async def list_files(
    conn: Connection, *, owner_id: UUID, purpose: str | None, page: PageRequest
) -> Page[FileRecord]:
    """A user's files."""
    clause, parameters = page_clause(page, "id", 3)
    rows = await conn.fetch(
        f"""
        SELECT {_COLUMNS} FROM files
        WHERE owner_id = $1 AND ($2::text IS NULL OR purpose = $2) {clause}
        """,
        owner_id,
        purpose,
        *parameters,
    )
    return make_page(page, [FileRecord(**dict(row)) for row in rows])


async def delete_file(conn: Connection, file_id: UUID) -> None:
    """Forget a file; its attachments and ingestions go with it. Detach it first: see `store_files.detach`."""
    await conn.execute("DELETE FROM files WHERE id = $1", file_id)
